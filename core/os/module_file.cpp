#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <sstream>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/environment.hpp>
#include <meshstage/core/os/module_file.hpp>

namespace meshstage::detail {
namespace {

namespace fs = std::filesystem;

/// The shared library or program that this code was linked into, as the dynamic linker knows it.
struct Self {
  fs::path folder;                  ///< Empty if it cannot be told.
  std::vector<fs::path> run_paths;  ///< Where the dynamic linker looks for libraries on its behalf.
};

std::vector<fs::path> run_paths_of(const char* name) {
  // The empty name is the program's own; RTLD_NOLOAD: a handle to what is loaded already.
  void* const handle = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return {};
  std::vector<fs::path> found;
  Dl_serinfo size{};
  if (dlinfo(handle, RTLD_DI_SERINFOSIZE, &size) == 0) {
    std::vector<Dl_serinfo> room(size.dls_size / sizeof(Dl_serinfo) + 1);
    Dl_serinfo* const paths = room.data();
    paths->dls_size = size.dls_size;
    paths->dls_cnt = size.dls_cnt;
    if (dlinfo(handle, RTLD_DI_SERINFO, paths) == 0) {
      const Dl_serpath* const first = &paths->dls_serpath[0];
      for (unsigned i = 0; i < paths->dls_cnt; ++i) found.emplace_back(first[i].dls_name);
    }
  }
  dlclose(handle);
  return found;
}

Self find_self() {
  static const char here = 0;  // an object of this file: a function's address may be the program's
  Dl_info info{};
  void* extra = nullptr;
  if (dladdr1(&here, &info, &extra, RTLD_DL_LINKMAP) == 0 || extra == nullptr) return {};
  const char* const name = static_cast<const link_map*>(extra)->l_name;
  // The program itself has no name there, and the one it was started by may be relative.
  const bool program = name == nullptr || *name == '\0';
  std::error_code error;
  const fs::path file = fs::canonical(program ? "/proc/self/exe" : name, error);
  return {.folder = error ? fs::path() : file.parent_path(),
          .run_paths = run_paths_of(program ? nullptr : name)};
}

std::vector<fs::path> candidates(const fs::path& path, const std::string& name) {
  std::vector<fs::path> found;
  const auto in = [&found, &name](const fs::path& folder) {
    if (folder.empty()) return;
    const fs::path file = (folder / name).lexically_normal();
    if (std::find(found.begin(), found.end(), file) == found.end()) found.push_back(file);
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
  if (const auto variable = environment_variable("MESHSTAGE_MODULE_PATH")) {
    std::istringstream folders(*variable);
    for (std::string folder; std::getline(folders, folder, ':');) in(folder);
  }
  const Self self = find_self();
  if (!self.folder.empty()) {
    in(self.folder);
    in(self.folder / "meshstage");                                   // beside a shared library
    in(self.folder / ".." / MESHSTAGE_LIBDIR / "meshstage");         // of a program in bin/
    in(self.folder / ".." / ".." / MESHSTAGE_LIBDIR / "meshstage");  // of a test in the build tree
  }
  // Programs that link a static libmeshstage carry the installed module's folder as a run path.
  for (const fs::path& folder : self.run_paths) in(folder);
  in(fs::path(MESHSTAGE_FULL_LIBDIR) / "meshstage");
  return found;
}

}  // namespace

const void* open_module(const ModuleFile& wanted, const std::filesystem::path& path) {
  std::string tried;
  for (const fs::path& file : candidates(path, wanted.file)) {
    std::error_code error;
    if (!fs::exists(file, error)) {
      tried += "\n  " + file.string() + ": no such file";
      continue;
    }
    // dlopen keeps count and gives the same module again, so there is nothing to remember here.
    void* const module = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | wanted.open_flags);
    if (module == nullptr) {
      tried += "\n  " + std::string(dlerror());
      continue;
    }
    void* const symbol = dlsym(module, wanted.table_symbol);
    if (symbol == nullptr)
      throw InvalidState(file.string() + " is no " + wanted.library + " module of meshstage");
    const void* const table = reinterpret_cast<const void* (*)()>(symbol)();
    const auto abi = *static_cast<const std::uint32_t*>(table);
    if (abi != wanted.abi) {
      throw InvalidState(file.string() + " has module version " + std::to_string(abi) +
                         ", this library needs " + std::to_string(wanted.abi) +
                         "; install both from one build");
    }
    return table;
  }
  throw make_error<NotFound>(std::string("the ") + wanted.library + " module " + wanted.file +
                             " was not found; build with " + wanted.remedy +
                             ", or set MESHSTAGE_MODULE_PATH to its folder. Tried:" + tried);
}

}  // namespace meshstage::detail
