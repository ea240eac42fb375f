#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdio>

#include <meshstage/core/comm/supervisor.hpp>

namespace meshstage {

void report_joined(const std::string& path, int rank, std::uint64_t generation) noexcept {
  sockaddr_un address{};
  if (path.empty() || path.size() >= sizeof address.sun_path) return;
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return;
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  std::array<char, 64> text{};
  const int length = std::snprintf(text.data(), text.size(), "joined %d %llu", rank,
                                   static_cast<unsigned long long>(generation));
  (void)::sendto(fd, text.data(), static_cast<std::size_t>(length), MSG_NOSIGNAL,
                 reinterpret_cast<const sockaddr*>(&address), sizeof address);
  ::close(fd);
}

}  // namespace meshstage
