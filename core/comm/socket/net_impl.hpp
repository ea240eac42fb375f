#pragma once
// Private to the library; exported for its tests.
#include <cstdint>
#include <string>
#include <utility>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage::net {

/// A descriptor with one owner.
class MESHSTAGE_API Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Descriptor() { reset(); }
  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] bool valid() const noexcept { return fd_ >= 0; }
  void reset() noexcept;

 private:
  int fd_ = -1;
};

/// The address at which other hosts reach this one. It is `host`, unless that name means loopback
/// or has no address here; then it is the address of the first interface that is up (IPv4 before
/// IPv6; no link-local one). If there is no such interface it is `host` again; if `host` has no
/// address, throws the error of check_host().
[[nodiscard]] MESHSTAGE_API std::string address_for_others(const std::string& host);
/// The same for this host's own name.
[[nodiscard]] MESHSTAGE_API std::string own_address_for_others();
/// Throws InvalidArgument, naming MESHSTAGE_HOST, if `host` means nothing but loopback here, and
/// what check_host() throws.
MESHSTAGE_API void check_not_loopback(const std::string& host);
/// Throws InvalidArgument, naming MESHSTAGE_HOST, if `host` is neither a name that has an address
/// here nor an address. "[::1]" is "::1".
MESHSTAGE_API void check_host(const std::string& host);
/// "::1" of "[::1]".
[[nodiscard]] MESHSTAGE_API std::string without_brackets(const std::string& host);
/// Listens on `port` of `host` (an address or a name); "0" takes a free port. The socket is
/// non-blocking and close-on-exec. Throws IoError naming the host.
[[nodiscard]] MESHSTAGE_API Descriptor listen_on(const std::string& host,
                                                 const std::string& port = "0");
/// The address and port of a listening socket: "127.0.0.1 40123", "::1 40123".
[[nodiscard]] MESHSTAGE_API std::string address_of(int fd);
/// Begins to connect to an address as address_of() writes it; the socket becomes writable when the
/// connection is made or refused. Throws IoError, also if the connection was refused at once.
[[nodiscard]] MESHSTAGE_API Descriptor begin_connect(const std::string& address);
struct Connected {
  Descriptor fd;         ///< Not valid() if no address of the host took the connection.
  int error = 0;         ///< The errno of the last attempt, or ETIMEDOUT at the deadline.
  bool stopped = false;  ///< `stop` was readable first.
};
/// Connects to a host by name or address, trying each of its addresses, and waits until it is
/// connected. `stop`: a descriptor that ends the wait, or -1. Throws IoError if the name has no
/// address.
[[nodiscard]] MESHSTAGE_API Connected connect_to(const std::string& host, const std::string& port,
                                                 Deadline deadline, int stop);
/// Lets the kernel find out within half a minute that the other host is gone.
void set_keep_alive(int fd);
/// As getsockopt(SO_ERROR): 0 or the errno of a connection.
[[nodiscard]] int connect_error(int fd);
/// An accepted, non-blocking, close-on-exec connection; not valid() if there is none.
[[nodiscard]] MESHSTAGE_API Descriptor accept_from(int listener);

}  // namespace meshstage::net
