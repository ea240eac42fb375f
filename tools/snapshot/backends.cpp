#include "tools/snapshot/backends.hpp"

#include <dlfcn.h>

#include <meshstage/core/comm/gloo/module.hpp>
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

}  // namespace

std::vector<Backend> find_backends() { return {find_gloo()}; }

}  // namespace meshstage::tools
