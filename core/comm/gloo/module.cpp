#include <dlfcn.h>

#include <cstdlib>
#include <sstream>
#include <vector>

#include <meshstage/core/comm/gloo/module.hpp>
#include <meshstage/core/comm/gloo/module_table_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

namespace fs = std::filesystem;
constexpr char kFile[] = "libmeshstage_gloo.so";

/// The folder of the shared library or program that this code was linked into.
fs::path own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&gloo_module_table), &info) == 0 ||
      info.dli_fname == nullptr) {
    return {};
  }
  std::error_code error;
  fs::path file = fs::canonical(info.dli_fname, error);
  // A program started through PATH has no folder in its name.
  if (error) file = fs::canonical("/proc/self/exe", error);
  return file.parent_path();
}

std::vector<fs::path> candidates(const fs::path& path) {
  std::vector<fs::path> found;
  const auto in = [&found](const fs::path& folder) {
    if (!folder.empty()) found.push_back((folder / kFile).lexically_normal());
  };
  if (!path.empty()) {
    // A path that was asked for is the only one: a user who names a file means it.
    if (path.extension() == ".so") {
      found.push_back(path);
    } else {
      in(path);
    }
    return found;
  }
  if (const char* variable = std::getenv("MESHSTAGE_MODULE_PATH")) {
    std::istringstream folders(variable);
    for (std::string folder; std::getline(folders, folder, ':');) in(folder);
  }
  if (const fs::path own = own_folder(); !own.empty()) {
    in(own);
    in(own / "meshstage");                                   // beside a shared library
    in(own / ".." / MESHSTAGE_LIBDIR / "meshstage");         // of a program in bin/, also if moved
    in(own / ".." / ".." / MESHSTAGE_LIBDIR / "meshstage");  // of a test in the build tree
  }
  in(fs::path(MESHSTAGE_FULL_LIBDIR) / "meshstage");
  return found;
}

int open_flags() {
  int flags = RTLD_NOW | RTLD_LOCAL;
  // LibTorch exports some two hundred symbols that Gloo also defines. Where it is in the process
  // the module must prefer its own; elsewhere RTLD_DEEPBIND would only do harm (the sanitizers
  // refuse it).
  constexpr char kGlooSymbol[] = "_ZN4gloo9transport3tcp12CreateDeviceERKNS1_4attrE";
  if (dlsym(RTLD_DEFAULT, kGlooSymbol) != nullptr) flags |= RTLD_DEEPBIND;
  return flags;
}

const gloo_module::Table& open(const fs::path& path) {
  std::string tried;
  for (const fs::path& file : candidates(path)) {
    std::error_code error;
    if (!fs::exists(file, error)) {
      tried += "\n  " + file.string() + ": no such file";
      continue;
    }
    void* const module = dlopen(file.c_str(), open_flags());
    if (module == nullptr) {
      tried += "\n  " + std::string(dlerror());
      continue;
    }
    void* const symbol = dlsym(module, "meshstage_gloo_module_table");
    if (symbol == nullptr) {
      throw InvalidState(file.string() + " is no Gloo module of meshstage");
    }
    const auto get = reinterpret_cast<gloo_module::GetTable>(symbol);
    const gloo_module::Table* const table = get();
    if (table->abi != gloo_module::kGlooModuleAbi) {
      throw InvalidState(file.string() + " has module version " + std::to_string(table->abi) +
                         ", this library needs " + std::to_string(gloo_module::kGlooModuleAbi) +
                         "; install both from one build");
    }
    return *table;
  }
  throw make_error<NotFound>(
      "the Gloo module libmeshstage_gloo.so was not found; build with MESHSTAGE_GLOO=ON (Debian: "
      "libgloo-dev), or set MESHSTAGE_MODULE_PATH to its folder. Tried:" +
      tried);
}

}  // namespace

const gloo_module::Table& gloo_module_table(const std::filesystem::path& path) {
  // dlopen keeps count and gives the same module again, so there is nothing to remember here.
  return open(path);
}

std::string gloo_version(const std::filesystem::path& path) {
  return gloo_module_table(path).version;
}

}  // namespace meshstage
