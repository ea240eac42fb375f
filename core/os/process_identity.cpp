#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/os/process_identity.hpp>

#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <random>

namespace meshstage {

namespace {

std::uint64_t draw_instance() {
  std::uint64_t value = 0;
  if (::getrandom(&value, sizeof value, 0) != sizeof value) {
    std::random_device device;
    value = (std::uint64_t{device()} << 32U) | device();
  }
  return value == 0 ? 1 : value;
}

/// Field 22 of /proc/PID/stat; 0 if there is no such process, or only its zombie. The name in field
/// 2 may contain anything, so count from its last ")".
std::uint64_t start_time_of(const std::string& pid) {
  const auto stat = read_text(real_file_system(), "/proc/" + pid + "/stat");
  if (!stat) return 0;
  std::size_t at = stat->rfind(')');
  if (at == std::string::npos || at + 2 >= stat->size()) return 0;
  const char state = (*stat)[at + 2];
  if (state == 'Z' || state == 'X') return 0;
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = stat->find(' ', at + 1);
  if (at == std::string::npos) return 0;
  std::uint64_t value = 0;
  std::from_chars(stat->data() + at + 1, stat->data() + stat->size(), value);
  return value;
}

std::string read_boot_id() {
  std::string id = read_text(real_file_system(), "/proc/sys/kernel/random/boot_id").value_or("");
  while (!id.empty() && id.back() == '\n') id.pop_back();
  return id;
}

}  // namespace

ProcessIdentity this_process() {
  static const std::uint64_t instance = draw_instance();
  ProcessIdentity self;
  self.pid = ::getpid();
  self.start_time = start_time_of("self");
  self.instance = instance;
  self.uid = ::geteuid();
  self.boot_id = read_boot_id();
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) == 0) self.host = name.data();
  return self;
}

bool is_alive(const ProcessIdentity& identity) {
  if (identity.pid <= 0 || identity.start_time == 0) return false;
  if (!identity.boot_id.empty() && identity.boot_id != read_boot_id()) return false;
  return start_time_of(std::to_string(identity.pid)) == identity.start_time;
}

}  // namespace meshstage
