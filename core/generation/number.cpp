#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <random>

#include <meshstage/core/generation/number.hpp>

namespace meshstage {

namespace {

constexpr unsigned kSecondsAt = 25;             // the bits below: random, then the generations
constexpr std::int64_t kYear2020 = 1577836800;  // 2020-01-01 00:00:00 UTC

}  // namespace

std::string generation_text(std::uint64_t generation) {
  return "generation " + std::to_string(generation_in_run(generation));
}

std::uint64_t draw_run(std::uint64_t above) {
  const auto since_1970 = std::chrono::duration_cast<std::chrono::seconds>(
      std::chrono::system_clock::now().time_since_epoch());
  const std::int64_t seconds = std::max<std::int64_t>(since_1970.count() - kYear2020, 1);
  const std::uint64_t time =
      std::max(static_cast<std::uint64_t>(seconds), (above >> kSecondsAt) + 1);
  constexpr std::uint64_t kRandom = (std::uint64_t{1} << (kSecondsAt - kGenerationBits)) - 1;
  std::random_device random;
  return time << kSecondsAt | (random() & kRandom) << kGenerationBits;
}

std::string run_text(std::uint64_t generation) {
  const std::uint64_t seconds = generation >> kSecondsAt;
  if (seconds == 0) return "a run of an older release";
  return "the run begun at " + utc_text(static_cast<std::int64_t>(seconds) + kYear2020);
}

std::string utc_text(std::int64_t seconds_since_1970) {
  const auto time = static_cast<std::time_t>(seconds_since_1970);
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  std::array<char, 32> text{};
  (void)std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text.data();
}

}  // namespace meshstage
