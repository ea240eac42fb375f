#include "tools/snapshot/backends.hpp"

#include <dlfcn.h>

#include <meshstage/core/comm/gloo/module.hpp>
#include <meshstage/core/comm/nccl/module.hpp>
#include <meshstage/core/comm/redis/store.hpp>
#include <meshstage/core/device/runtime.hpp>
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

Backend find_cuda() {
  Backend cuda{.name = "cuda", .found = false, .version = {}, .path = {}, .detail = {}};
  const auto support = device_support(DeviceType::kCuda);
  cuda.found = support.problem == DeviceProblem::kNone;
  cuda.version = support.driver;
  if (!cuda.found) {
    cuda.detail = std::string(to_string(support.problem)) + ": " + support.detail;
    return cuda;
  }
  cuda.path = "driver; module with " + support.module;
  if (!support.kernels.empty()) cuda.path += "; no kernels (" + support.kernels + ")";
  return cuda;
}

Backend find_nccl() {
  Backend nccl{.name = "nccl", .found = false, .version = {}, .path = {}, .detail = {}};
  const auto support = nccl_support();
  nccl.found = support.problem.empty();
  nccl.version = support.library;
  if (nccl.found) {
    nccl.path = support.path + "; module with " + support.module;
  } else {
    nccl.detail = support.problem;
  }
  return nccl;
}

}  // namespace

std::vector<Backend> find_backends() {
  return {find_gloo(), find_redis(), find_cuda(), find_nccl()};
}

}  // namespace meshstage::tools
