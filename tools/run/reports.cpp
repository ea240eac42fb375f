#include "tools/run/reports.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::tools::run {
namespace {

template <typename Number>
bool take_number(std::string_view& text, Number& value) {
  const auto [stopped, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  text.remove_prefix(static_cast<std::size_t>(stopped - text.data()));
  return error == std::errc();
}

std::filesystem::path own_folder() {
  const auto make = [](const std::filesystem::path& parent) {
    std::string pattern = (parent / "meshstage-run-XXXXXX").string();
    return ::mkdtemp(pattern.data()) == nullptr ? std::string() : pattern;
  };
  constexpr std::size_t kLongestSocketPath = 80;  // of 107, with a name inside
  std::error_code ignored;
  const auto usual = std::filesystem::temp_directory_path(ignored);
  std::string made;
  if (!ignored && usual.string().size() < kLongestSocketPath) made = make(usual);
  if (made.empty()) made = make("/tmp");
  if (made.empty()) throw_errno("mkdtemp", "/tmp/meshstage-run-XXXXXX", errno);
  return made;
}

}  // namespace

std::optional<Report> parse_report(std::string_view text) {
  using Kind = Report::Kind;
  static constexpr std::array<std::pair<std::string_view, Kind>, 4> kWords{
      {{"joined ", Kind::kJoined},
       {"forming ", Kind::kForming},
       {"alive ", Kind::kAlive},
       {"left ", Kind::kLeft}}};
  for (const auto& [word, kind] : kWords) {
    if (!text.starts_with(word)) continue;
    Report report{.kind = kind};
    text.remove_prefix(word.size());
    if (!take_number(text, report.rank) || report.rank < 0 || !text.starts_with(' ')) break;
    text.remove_prefix(1);
    if (!take_number(text, report.number) || !text.empty()) break;
    return report;
  }
  return std::nullopt;
}

Reports::Reports() : folder_(own_folder()) {
  socket_ = Descriptor(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path().copy(address.sun_path, sizeof address.sun_path - 1);
  if (socket_.get() < 0 ||
      ::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
    throw_errno("bind", path(), error);
  }
}

Reports::~Reports() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::vector<Report> Reports::take() {
  std::vector<Report> all;
  std::array<char, 256> buffer{};
  while (true) {
    const ssize_t n = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return all;
    if (const auto report = parse_report({buffer.data(), static_cast<std::size_t>(n)})) {
      all.push_back(*report);
    }
  }
}

}  // namespace meshstage::tools::run
