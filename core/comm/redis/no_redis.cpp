// In place of redis_store.cpp where hiredis was not found or not wanted.
#include <meshstage/core/comm/redis/store.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

std::shared_ptr<Store> make_redis_store(RedisStoreOptions options) {
  throw NotFound("redis://" + options.host +
                 ": this build has no Redis; configure with -DMESHSTAGE_REDIS=ON (Debian and "
                 "Ubuntu: apt-get install libhiredis-dev)");
}

std::string redis_client_version() { return {}; }

}  // namespace meshstage
