#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <memory>
#include <sstream>
#include <string_view>

#include <meshstage/core/comm/socket/net_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::net {

std::string without_brackets(const std::string& host) {
  if (!host.starts_with('[') || !host.ends_with(']')) return host;
  return host.substr(1, host.size() - 2);
}

namespace {

constexpr std::chrono::minutes kLongestPoll{10};

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

AddressList resolve(const std::string& host, const std::string& port, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int result = ::getaddrinfo(without_brackets(host).c_str(), port.c_str(), &hints, &found);
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

bool is_loopback(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    return ntohl(v4.sin_addr.s_addr) >> 24U == 127;
  }
  return address.sa_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
}

/// As digits; empty where it cannot be used from another host.
std::string usable_elsewhere(const ifaddrs& interface) {
  constexpr unsigned kUp = IFF_UP | IFF_RUNNING;
  const sockaddr* const address = interface.ifa_addr;
  if (address == nullptr || (interface.ifa_flags & kUp) != kUp || is_loopback(*address)) return "";
  const bool v4 = address->sa_family == AF_INET;
  if (!v4 && (address->sa_family != AF_INET6 ||
              IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6&>(*address).sin6_addr))) {
    return "";
  }
  std::array<char, NI_MAXHOST> digits{};
  const socklen_t length = v4 ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  const int failed =
      ::getnameinfo(address, length, digits.data(), digits.size(), nullptr, 0, NI_NUMERICHOST);
  return failed == 0 ? digits.data() : "";
}

}  // namespace

namespace {
bool is_number(const std::string& host) {
  return host.find_first_not_of("0123456789") == std::string::npos;
}
/// True if one of the addresses is not loopback.
bool leads_elsewhere(const AddressList& addresses) {
  for (const addrinfo* a = addresses.get(); a != nullptr; a = a->ai_next) {
    if (!is_loopback(*a->ai_addr)) return true;
  }
  return false;
}
}  // namespace

void check_host(const std::string& host) {
  try {
    // The system would take a number for an address: 12 for 0.0.0.12.
    if (is_number(host)) throw IoError("the host " + host + " is a number");
    (void)resolve(host, "0", 0);
  } catch (const IoError& e) {
    const std::string_view text = e.what();
    throw InvalidArgument(std::string(text.substr(text.find(": ") + 2)) +
                          "; set MESHSTAGE_HOST (or the option `host`) to a name or an address at "
                          "which the other ranks reach this host");
  }
}

void check_not_loopback(const std::string& host) {
  check_host(host);
  if (leads_elsewhere(resolve(host, "0", 0))) return;
  throw InvalidArgument("the host " + host +
                        " means loopback, and no network interface is up; set MESHSTAGE_HOST to a "
                        "name or an address at which the other hosts reach this one");
}

std::string own_address_for_others() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return address_for_others(name.data());
}

std::string address_for_others(const std::string& host) {
  bool is_name = !is_number(host);
  try {
    if (is_name && leads_elsewhere(resolve(host, "0", 0))) return host;
  } catch (const IoError&) {
    is_name = false;  // nobody knows it, so an interface must do
  }
  ifaddrs* found = nullptr;
  if (::getifaddrs(&found) != 0) throw_errno("getifaddrs", "", errno);
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> interfaces(found, &::freeifaddrs);
  std::string v6;
  for (const ifaddrs* i = interfaces.get(); i != nullptr; i = i->ifa_next) {
    const std::string address = usable_elsewhere(*i);
    if (address.empty()) continue;
    if (i->ifa_addr->sa_family == AF_INET) return address;
    if (v6.empty()) v6 = address;
  }
  if (v6.empty() && !is_name) check_host(host);  // throws
  return v6.empty() ? host : v6;
}

void Descriptor::reset() noexcept {
  if (const int fd = std::exchange(fd_, -1); fd >= 0) ::close(fd);
}

Descriptor listen_on(const std::string& host, const std::string& port) {
  const AddressList list = resolve(host, port, AI_PASSIVE);
  int error = 0;
  for (const addrinfo* a = list.get(); a != nullptr; a = a->ai_next) {
    Descriptor fd(::socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int on = 1;
    // A server that starts anew is not kept from its port by connections that have ended.
    if (fd.valid() && port != "0") {
      (void)::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    }
    if (fd.valid() && ::bind(fd.get(), a->ai_addr, a->ai_addrlen) == 0 &&
        ::listen(fd.get(), SOMAXCONN) == 0) {
      return fd;
    }
    error = errno;
  }
  throw_errno("listen on", port == "0" ? host : host + ":" + port, error);
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

Connected connect_to(const std::string& host, const std::string& port, Deadline deadline,
                     int stop) {
  const AddressList list = resolve(host, port, 0);
  Connected result;
  for (const addrinfo* a = list.get(); a != nullptr; a = a->ai_next) {
    Descriptor fd(::socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd.valid()) {
      if (errno != EAFNOSUPPORT) throw_errno("socket", "", errno);
      result.error = errno;  // a host without IPv6, say: the next address may do
      continue;
    }
    set_no_delay(fd.get());
    result.error = ::connect(fd.get(), a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
    while (result.error == EINPROGRESS) {
      std::array<pollfd, 2> wanted{{{fd.get(), POLLOUT, 0}, {stop, POLLIN, 0}}};
      const auto left = std::min<std::chrono::milliseconds>(deadline.remaining(), kLongestPoll);
      if (::poll(wanted.data(), wanted.size(), static_cast<int>(left.count())) < 0 &&
          errno != EINTR) {
        throw_errno("poll", "", errno);
      }
      if (wanted[1].revents != 0) {
        result.stopped = true;
        return result;
      }
      if (wanted[0].revents != 0) {
        result.error = connect_error(fd.get());
      } else if (deadline.expired()) {
        result.error = ETIMEDOUT;
      }
    }
    if (result.error == 0) {
      result.fd = std::move(fd);
      return result;
    }
  }
  return result;
}

void set_keep_alive(int fd) {
  // Without it a vanished host is noticed by deadlines alone, which is no error.
  const auto set = [fd](int level, int name, int value) {
    (void)::setsockopt(fd, level, name, &value, sizeof(value));
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
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
