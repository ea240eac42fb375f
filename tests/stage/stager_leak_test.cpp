// What staging and saving over and over costs in memory.
#include <fstream>
#include <sstream>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/files/state_file.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"

using namespace meshstage;

namespace {

// Bytes of this process's memory that are there, without the files it maps.
std::uint64_t resident_bytes() {
  std::ifstream status("/proc/self/status");
  std::uint64_t sum = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("RssAnon:", 0) != 0 && line.rfind("RssShmem:", 0) != 0) continue;
    std::istringstream words(line);
    std::string name;
    std::uint64_t kib = 0;
    words >> name >> kib;
    sum += kib * 1024;
  }
  return sum;
}

const Tensor& tensor(const Value& v) { return v.at("t3").as<Tensor>(); }

}  // namespace

TEST_CASE("no_memory_leak: staged and saved asynchronously 20 times, memory stays") {
  constexpr std::int64_t kTensors = 16;
  constexpr std::int64_t kElements = (std::int64_t{8} << 20U) / 4;
  constexpr auto kImage = static_cast<double>(kTensors * kElements * 4);
  const TempDirectory directory;
  const auto file = directory.path() / "saved.safetensors";
  Dict state;
  for (std::int64_t i = 0; i < kTensors; ++i)
    state.set("t" + std::to_string(i), Tensor::full<std::int32_t>({kElements}, 1));
  const auto before = resident_bytes();
  REQUIRE(static_cast<double>(before) > kImage);
  std::uint64_t most = before;
  {
    StateDictStager stager;
    Worker saver("saver");
    for (int round = 0; round < 20; ++round) {
      const auto staged = stager.stage_async(state).get();
      saver.post(
          [staged, &file] { save_safetensors(real_file_system(), file, staged.as<Dict>()); });
      tensor(state).data<std::int32_t>()[round] = -round;  // while it is saved
      most = std::max(most, resident_bytes());
      saver.drain();  // the memory is used again
      most = std::max(most, resident_bytes());
    }
    CHECK(stager.plans() == 1);
    const auto saved = load_state_file(real_file_system(), file);
    const auto t3 = tensor(saved).span<const std::int32_t>();
    CHECK(t3[18] == -18);
    CHECK(t3[19] == 1);
  }
  CHECK(static_cast<double>(most - before) < 1.2 * kImage);
  // And it goes back.
  CHECK(static_cast<double>(resident_bytes()) < static_cast<double>(before) + 0.2 * kImage);
}
