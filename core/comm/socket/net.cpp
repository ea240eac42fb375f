#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <sstream>

#include <meshstage/core/comm/socket/net_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::net {

namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

AddressList resolve(const std::string& host, const std::string& port, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int result = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (result != 0) {
    throw IoError("the host " + host + " has no address here: " + ::gai_strerror(result));
  }
  return {found, &::freeaddrinfo};
}

void set_no_delay(int fd) {
  const int on = 1;
  // Failing here costs some delay and nothing else.
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

}  // namespace

void Descriptor::reset() noexcept {
  if (const int fd = std::exchange(fd_, -1); fd >= 0) ::close(fd);
}

Descriptor listen_on(const std::string& host) {
  const AddressList list = resolve(host, "0", AI_PASSIVE);
  int error = 0;
  for (const addrinfo* a = list.get(); a != nullptr; a = a->ai_next) {
    Descriptor fd(::socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (fd.valid() && ::bind(fd.get(), a->ai_addr, a->ai_addrlen) == 0 &&
        ::listen(fd.get(), SOMAXCONN) == 0) {
      return fd;
    }
    error = errno;
  }
  throw_errno("listen on", host, error);
}

std::string address_of(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  auto* const plain = reinterpret_cast<sockaddr*>(&address);
  if (::getsockname(fd, plain, &length) != 0) throw_errno("getsockname", "", errno);
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  const int result = ::getnameinfo(plain, length, host.data(), host.size(), port.data(),
                                   port.size(), NI_NUMERICHOST | NI_NUMERICSERV);
  if (result != 0) throw IoError(std::string("getnameinfo: ") + ::gai_strerror(result));
  return std::string(host.data()) + " " + port.data();
}

Descriptor begin_connect(const std::string& address) {
  std::istringstream text(address);
  std::string host;
  std::string port;
  text >> host >> port;
  const AddressList list = resolve(host, port, AI_NUMERICHOST | AI_NUMERICSERV);
  const addrinfo& a = *list;
  Descriptor fd(::socket(a.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) throw_errno("socket", "", errno);
  set_no_delay(fd.get());
  if (::connect(fd.get(), a.ai_addr, a.ai_addrlen) != 0 && errno != EINPROGRESS) {
    throw_errno("connect to", address, errno);
  }
  return fd;
}

int connect_error(int fd) {
  int error = 0;
  socklen_t length = sizeof(error);
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) return errno;
  return error;
}

Descriptor accept_from(int listener) {
  Descriptor fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (fd.valid()) set_no_delay(fd.get());
  return fd;
}

}  // namespace meshstage::net
