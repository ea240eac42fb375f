#pragma once
#include <filesystem>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

namespace nccl_module {
struct Table;
}

/// The NCCL module, libmeshstage_nccl.so, opened at the first call and never closed.
/// core/os/module_file.hpp says where modules are sought; `path` is the file, or its folder. Throws
/// NotFound, listing each path tried, or InvalidState for a module of another version. Threads:
/// any.
[[nodiscard]] MESHSTAGE_API const nccl_module::Table& nccl_module_table(
    const std::filesystem::path& path = {});

/// The NCCL that a group would use. The module takes the one that is in the process already, else
/// libnccl.so.2 as the dynamic linker finds it.
struct NcclSupport {
  std::string module;   ///< "NCCL 2.28.9 headers"; empty if there is no module.
  std::string library;  ///< "2.28.9"; empty if there is none.
  std::string path;     ///< The library's file.
  std::string problem;  ///< Why NCCL cannot be used; empty if it can.
};
/// For `meshstage info`; never throws an Error. Makes no context and no thread.
[[nodiscard]] MESHSTAGE_API NcclSupport nccl_support(const std::filesystem::path& path = {});

}  // namespace meshstage
