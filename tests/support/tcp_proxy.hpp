// A wire between two processes that does what it is told: loses, delays, throttles, changes.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace meshstage::testing {

struct Wire {
  std::chrono::milliseconds delay{0};  ///< Of every byte, each way.
  std::size_t bytes_per_second = 0;    ///< Each way; 0: as fast as it goes.
  /// Changes what passes, as it was read: a piece of the stream. Called on the proxy's thread.
  std::function<void(bool to_server, std::vector<std::byte>& piece)> change = {};
};

/// Listens on loopback and passes every connection on to `host`:`port`. One thread. Threads: any.
class TcpProxy {
 public:
  /// `port_wanted` 0: any. Throws IoError.
  TcpProxy(const std::string& host, std::uint16_t port, Wire wire, std::uint16_t port_wanted = 0);
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;
  ~TcpProxy();

  [[nodiscard]] std::uint16_t port() const;
  /// From now on everything that comes is taken and never seen again; no connection ends.
  void vanish();
  /// Ends the connections there are; new ones are made.
  void cut();
  void set(Wire wire);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meshstage::testing
