#pragma once
#include <chrono>
#include <memory>
#include <string>

#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

struct RedisStoreOptions {
  std::string host;
  int port = 6379;
  std::string user;      ///< Empty: the default user.
  std::string password;  ///< Empty: the server asks for none.
  int database = 0;
  /// A call tries for this long while no server answers; then it throws IoError. To wait for a
  /// server that starts after its ranks, call wait_reachable().
  std::chrono::milliseconds patience{10'000};
};

/// A store in a Redis server (6.0 or newer), over hiredis. Keys begin with "meshstage/" in the
/// server. Creation is SET NX; each write also publishes, in one transaction, so waiting does not
/// poll. The store reconnects after a lost connection. Values have at most 1 MiB. The connection is
/// not encrypted. The server must not evict entries (maxmemory-policy noeviction, its default) and
/// must keep them as long as the job runs. Throws NotFound if this build is without hiredis
/// (MESHSTAGE_REDIS). Threads: any may use the store; it has none of its own.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<Store> make_redis_store(RedisStoreOptions options);

/// `address` in a form that may be shown: user and password, which stand before '@', are left out.
[[nodiscard]] MESHSTAGE_API std::string without_password(const std::string& address);

/// "hiredis 1.2.0", or empty if this build is without.
[[nodiscard]] MESHSTAGE_API std::string redis_client_version();

}  // namespace meshstage
