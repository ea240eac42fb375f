#pragma once
#include <filesystem>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

namespace gloo_module {
struct Table;
}

/// The Gloo module, libmeshstage_gloo.so, opened at the first call and never closed.
/// core/os/module_file.hpp says where modules are sought; `path` is the file, or its folder. The
/// rest of the process does not see the module's symbols. Where a Gloo is already in the process
/// (LibTorch carries one), the module still uses its own. Throws NotFound, listing each path tried,
/// or InvalidState for a module of another version. Threads: any.
[[nodiscard]] MESHSTAGE_API const gloo_module::Table& gloo_module_table(
    const std::filesystem::path& path = {});

/// "Gloo 0.5.0" for `meshstage info`; throws what gloo_module_table() throws.
[[nodiscard]] MESHSTAGE_API std::string gloo_version(const std::filesystem::path& path = {});

}  // namespace meshstage
