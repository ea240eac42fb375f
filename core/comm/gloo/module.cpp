#include <dlfcn.h>

#include <meshstage/core/comm/gloo/module.hpp>
#include <meshstage/core/comm/gloo/module_table_impl.hpp>
#include <meshstage/core/os/module_file.hpp>

namespace meshstage {
namespace {

int open_flags() {
  // LibTorch exports some two hundred symbols that Gloo also defines. Where it is in the process
  // the module must prefer its own; elsewhere RTLD_DEEPBIND would only do harm (the sanitizers
  // refuse it).
  constexpr char kGlooSymbol[] = "_ZN4gloo9transport3tcp12CreateDeviceERKNS1_4attrE";
  return dlsym(RTLD_DEFAULT, kGlooSymbol) != nullptr ? RTLD_DEEPBIND : 0;
}

}  // namespace

const gloo_module::Table& gloo_module_table(const std::filesystem::path& path) {
  const detail::ModuleFile gloo{.library = "Gloo",
                                .file = "libmeshstage_gloo.so",
                                .table_symbol = gloo_module::kTableSymbol,
                                .abi = gloo_module::kGlooModuleAbi,
                                .remedy = "MESHSTAGE_GLOO=ON (Debian: libgloo-dev)",
                                .open_flags = open_flags()};
  return *static_cast<const gloo_module::Table*>(detail::open_module(gloo, path));
}

std::string gloo_version(const std::filesystem::path& path) {
  return gloo_module_table(path).version;
}

}  // namespace meshstage
