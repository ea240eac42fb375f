#pragma once
#include <filesystem>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

namespace gloo_module {
struct Table;
}

/// The Gloo module, libmeshstage_gloo.so, opened at the first call and never closed.
/// Sought, in this order: `path` (the file, or the folder it is in; nothing else if it is given);
/// each folder of the variable MESHSTAGE_MODULE_PATH (separated by ':'); beside the library or
/// program that contains this code, in `meshstage/` beside it, and in the library folder of the
/// same prefix, so an installed tree may be moved; the run paths of that library or program (CMake
/// and pkg-config give a program with a static libmeshstage the installed folder as one); the
/// library folder that was configured.
/// It is opened with its symbols to itself; only where a Gloo is already in the process (LibTorch
/// carries one) does it also prefer its own.
/// Throws NotFound, listing each path tried, or InvalidState for a module of another version.
/// Threads: any.
[[nodiscard]] MESHSTAGE_API const gloo_module::Table& gloo_module_table(
    const std::filesystem::path& path = {});

/// "Gloo 0.5.0" for `meshstage info`; throws as gloo_module_table().
[[nodiscard]] MESHSTAGE_API std::string gloo_version(const std::filesystem::path& path = {});

}  // namespace meshstage
