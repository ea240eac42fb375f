#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

struct StoreServerOptions {
  /// Address or name to listen on. Every host that reaches the address may read and write the
  /// entries: there are no passwords. Give an address in a network that only the job's hosts are
  /// in.
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;  ///< 0: a free one, see StoreServer::address().
  /// The largest size of all keys and values together; a write beyond it is refused.
  std::size_t max_bytes = std::size_t{256} << 20;
  /// Further connections are refused. One rank has about three.
  std::size_t max_connections = 16384;
  /// The largest number of connections that have not sent a hello yet; when one more comes, the
  /// oldest of them is dropped. Until its hello a connection takes a few hundred bytes.
  std::size_t max_strangers = 64;
  /// A connection that sends no hello for this long is dropped.
  std::chrono::milliseconds hello_deadline{2000};
};

/// The server of a `tcp://host:port` store (tcp_store/store.hpp): `meshstage store` is one, and any
/// process can have one. The server must outlive every rank of the job, because survivors of a
/// death meet in the Store. So run it in a process of its own, not in a rank's. The entries live as
/// long as the object; nothing is written to disk. Bytes that are no request end only the
/// connection over which they came.
///
/// Threads: the server has one (`ms-store`). Any thread may call.
class MESHSTAGE_API StoreServer {
 public:
  /// When the constructor returns, the server listens. Throws IoError naming host and port.
  explicit StoreServer(StoreServerOptions options);
  StoreServer(const StoreServer&) = delete;
  StoreServer& operator=(const StoreServer&) = delete;
  /// Ends every connection and joins the thread.
  ~StoreServer();

  /// The value for MESHSTAGE_STORE: "tcp://127.0.0.1:29400". If the server listens on every address
  /// (0.0.0.0, ::), this is an address that other hosts can use.
  [[nodiscard]] const std::string& address() const noexcept;
  [[nodiscard]] std::size_t connections() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meshstage
