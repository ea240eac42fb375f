#include "tools/snapshot/backends.hpp"

#include <dlfcn.h>

#include <meshstage/core/comm/gloo/module.hpp>
#include <meshstage/core/comm/redis/store.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::tools {
namespace {

Backend find_gloo() {
  Backend gloo{.name = "gloo", .found = false, .version = {}, .path = {}, .detail = {}};
  try {
    gloo.version = gloo_version();
    gloo.found = true;
    Dl_info where{};
    if (::dladdr(&gloo_module_table(), &where) != 0 && where.dli_fname != nullptr) {
      gloo.path = where.dli_fname;
    }
  } catch (const Error& e) {
    gloo.detail = e.what();
  }
  return gloo;
}

Backend find_redis() {
  Backend redis{.name = "redis", .found = false, .version = {}, .path = {}, .detail = {}};
  redis.version = redis_client_version();
  redis.found = !redis.version.empty();
  if (redis.found) {
    redis.path = "stores at redis://host:port";
  } else {
    redis.detail = "configured without hiredis; stores: file:/path and tcp://host:port";
  }
  return redis;
}

}  // namespace

std::vector<Backend> find_backends() { return {find_gloo(), find_redis()}; }

}  // namespace meshstage::tools
