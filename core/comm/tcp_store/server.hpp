#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

struct StoreServerOptions {
  /// Address or name to listen on. Whoever reaches it may read and write the entries: there are no
  /// passwords. Give an address of the network that only the job's hosts are in.
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;  ///< 0: a free one, see StoreServer::address().
  /// Keys and values together; more is refused to whoever writes it.
  std::size_t max_bytes = std::size_t{256} << 20;
  /// More are refused. One rank holds about three.
  std::size_t max_connections = 16384;
  /// Connections that have not said hello yet; when more come, the oldest of these is dropped.
  /// Until its hello a connection takes a few hundred bytes.
  std::size_t max_strangers = 64;
  /// A connection that has not said hello by then is dropped.
  std::chrono::milliseconds hello_deadline{2000};
};

/// The server of a `tcp://host:port` store (tcp_store/store.hpp): `meshstage store` is one, and any
/// process can have one. It must outlive every rank of the job, because a death is noted in the
/// Store and the ranks meet there again: so it is a process of its own, not one of the ranks'.
/// The entries live as long as the object does; nothing is written to disk.
/// Whatever comes over a connection that is no request ends that connection, and nothing else.
///
/// Threads: one of its own (`ms-store`). Any thread may call.
class MESHSTAGE_API StoreServer {
 public:
  /// Listens when it returns. Throws IoError naming host and port.
  explicit StoreServer(StoreServerOptions options);
  StoreServer(const StoreServer&) = delete;
  StoreServer& operator=(const StoreServer&) = delete;
  /// Ends every connection and joins the thread.
  ~StoreServer();

  /// What ranks give as MESHSTAGE_STORE: "tcp://127.0.0.1:29400". Of a server that listens on every
  /// address (0.0.0.0, ::) it is one that other hosts can use.
  [[nodiscard]] const std::string& address() const noexcept;
  [[nodiscard]] std::size_t connections() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meshstage
