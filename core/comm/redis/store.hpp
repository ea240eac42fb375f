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
  /// How long a call goes on trying while no server answers; then it throws IoError. A server that
  /// starts after its ranks is for wait_reachable().
  std::chrono::milliseconds patience{10'000};
};

/// A store in a Redis server (6.0 or newer), over hiredis. Keys begin with "meshstage/" there.
/// Creation is SET NX; who writes also publishes, in one transaction, so waiting does not poll. A
/// lost connection is made again. The server must not evict (maxmemory-policy noeviction, its
/// default), and keep its entries as long as the job runs. Not encrypted. Values have at most 1 MiB
/// here. Throws NotFound if this build is without hiredis (MESHSTAGE_REDIS). Threads of the store:
/// any; it has none of its own.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<Store> make_redis_store(RedisStoreOptions options);

/// An address as it may be shown: what stands before '@' is left out.
[[nodiscard]] MESHSTAGE_API std::string without_password(const std::string& address);

/// "hiredis 1.2.0", or empty if this build is without.
[[nodiscard]] MESHSTAGE_API std::string redis_client_version();

}  // namespace meshstage
