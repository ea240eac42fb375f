#include <meshstage/core/os/process_watch.hpp>

#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <exception>

#include <meshstage/core/os/process_identity.hpp>

namespace meshstage {

ProcessAddress own_process_address() {
  const ProcessIdentity self = this_process();
  ProcessAddress address;
  if (!self.boot_id.empty()) address.boot = XXH3_64bits(self.boot_id.data(), self.boot_id.size());
  struct stat status{};
  if (::stat("/proc/self/ns/pid", &status) == 0) address.pid_namespace = status.st_ino;
  address.pid = self.pid;
  address.start_time = self.start_time;
  return address;
}

ProcessWatch watch_process(const ProcessAddress& address) noexcept {
  int fd = -1;
  try {
    const ProcessAddress own = own_process_address();
    if (address.boot == 0 || address.pid_namespace == 0 || address.start_time == 0 ||
        address.pid <= 0 || own.start_time == 0 || address.boot != own.boot ||
        address.pid_namespace != own.pid_namespace || address.pid == own.pid) {
      return {};
    }
    // Close-on-exec by itself.
    fd = static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(address.pid), 0));
    if (fd < 0) return {.descriptor = -1, .ended = errno == ESRCH};
    pollfd ended{.fd = fd, .events = POLLIN, .revents = 0};
    if (::poll(&ended, 1, 0) > 0) {  // its own end, or a later one's of the same number
      ::close(fd);
      return {.descriptor = -1, .ended = true};
    }
    // Looked at after it was opened: if the start time fits now, the descriptor is that process's.
    if (is_alive({.pid = address.pid,
                  .start_time = address.start_time,
                  .instance = 0,
                  .uid = 0,
                  .boot_id = {},
                  .host = {}})) {
      return {.descriptor = fd, .ended = false};
    }
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): as where it does not fit
    // /proc cannot be read, or there is no memory for what it says.
  }
  // Under hidepid= a start time that does not fit is no proof of an end.
  if (fd >= 0) ::close(fd);
  return {};
}

}  // namespace meshstage
