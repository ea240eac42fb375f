#pragma once
#include <chrono>
#include <memory>
#include <string>

#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

struct TcpStoreOptions {
  std::string host;
  std::string port;
  /// A call tries for this long while no server answers; then it throws IoError. To wait for a
  /// server that starts after its ranks, call wait_reachable().
  std::chrono::milliseconds patience{10'000};
};

/// The store of a StoreServer at `tcp://host:port` (tcp_store/server.hpp). Waiting does not poll:
/// the server answers when an entry comes. The store reconnects after a lost connection and repeats
/// the request; a repeated request has the effect of one. A server that was restarted has lost its
/// entries: then every call throws IoError, and the job must be started anew. Values have at most 1
/// MiB.
///
/// Threads: the store has none; each call in progress has a connection, which is kept for later
/// calls.
class MESHSTAGE_API TcpStore final : public Store {
 public:
  explicit TcpStore(TcpStoreOptions options);
  ~TcpStore() override;

  void set(const std::string& key, std::string_view value,
           Deadline deadline = Deadline::never()) override;
  std::optional<std::string> get(const std::string& key,
                                 Deadline deadline = Deadline::never()) override;
  std::string compare_and_create(const std::string& key, std::string_view value,
                                 Deadline deadline = Deadline::never()) override;
  std::vector<std::string> list(const std::string& prefix,
                                Deadline deadline = Deadline::never()) override;
  void remove(const std::string& key, Deadline deadline = Deadline::never()) override;
  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop = {}) override;
  void wait_reachable(Deadline deadline, std::stop_token stop = {},
                      const Unanswered& unanswered = {}) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meshstage
