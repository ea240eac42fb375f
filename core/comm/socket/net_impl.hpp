#pragma once
#include <cstdint>
#include <string>
#include <utility>

namespace meshstage::net {

/// A descriptor with one owner.
class Descriptor {
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

/// Listens on a free port of `host` (an address or a name). Non-blocking, close-on-exec.
/// Throws IoError naming the host.
[[nodiscard]] Descriptor listen_on(const std::string& host);
/// Where a listening socket is: "127.0.0.1 40123", "::1 40123".
[[nodiscard]] std::string address_of(int fd);
/// Begins to connect to what address_of() said; the socket becomes writable when it is decided.
/// Throws IoError, also if the connection was refused at once.
[[nodiscard]] Descriptor begin_connect(const std::string& address);
/// As getsockopt(SO_ERROR): 0 or the errno of a connection.
[[nodiscard]] int connect_error(int fd);
/// An accepted, non-blocking, close-on-exec connection; not valid() if there is none.
[[nodiscard]] Descriptor accept_from(int listener);

}  // namespace meshstage::net
