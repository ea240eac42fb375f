// A Store that gives a rank other addresses for its peers: those of proxies, which can then lose,
// delay and change what passes.
#pragma once
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <meshstage/core/comm/wrapped_store.hpp>

#include "tests/support/tcp_proxy.hpp"

namespace meshstage::testing {

/// Every connection that the rank opens to a peer goes over a proxy of this store: those of its
/// control links, and those of its Gloo groups. The ones that peers open to it go over theirs.
/// Threads: any.
class ProxiedStore final : public WrappedStore {
 public:
  ProxiedStore(std::shared_ptr<Store> inner, int rank)
      : WrappedStore(std::move(inner)), rank_(rank) {}

  void set(const std::string& key, std::string_view value, Deadline deadline) override;
  std::optional<std::string> get(const std::string& key, Deadline deadline) override;
  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop) override;

  /// What passes between this rank and `peer`, over the connections there are, is lost from now on.
  /// If `peer` is this rank itself its host is gone: the Store cannot be reached either.
  void vanish(int peer);
  /// For every connection, also those to come.
  void slow(std::chrono::milliseconds delay, std::size_t bytes_per_second);
  /// Changes the next control message to `peer` that passes here ("flip", "drop", "repeat",
  /// "swap").
  void meddle(int peer, const std::string& how);

 private:
  struct Passage {
    int peer = -1;
    bool links = false;
    std::unique_ptr<TcpProxy> proxy;
  };
  /// Throws IoError once this rank's host is gone.
  void before_call() override;
  /// The value of `key` as this rank is to see it.
  std::string translated(const std::string& key, std::string value);
  /// The port of a new proxy for the control messages to `peer`.
  std::uint16_t proxy_to(int peer, const std::string& host, std::uint16_t port);
  /// The port of a new proxy for images from and to `peer`; in memory it is below `bound`.
  std::uint16_t proxy_below(std::uint16_t bound, int peer, const std::string& host,
                            std::uint16_t port);

  const int rank_;
  std::mutex mutex_;
  bool gone_ = false;
  Wire wire_;
  std::list<Passage> passages_;
  std::map<std::string, std::string> translations_;  // by key
  std::map<std::string, std::string> own_;           // what this rank has set, by key
};

}  // namespace meshstage::testing
