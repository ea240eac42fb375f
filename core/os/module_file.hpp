#pragma once
#include <cstdint>
#include <filesystem>

#include <meshstage/core/error/export.hpp>

namespace meshstage::detail {

/// A library that is opened at run time, so that neither libmeshstage nor its users link the
/// libraries that it needs. Its interface is one table of functions on plain data, whose first
/// member is the table's version, a std::uint32_t.
struct ModuleFile {
  const char* library;       ///< "Gloo", for messages.
  const char* file;          ///< "libmeshstage_gloo.so".
  const char* table_symbol;  ///< Its `extern "C" const void* function()` that returns the table.
  std::uint32_t abi;
  const char* remedy;  ///< How to build the module: "MESHSTAGE_GLOO=ON (Debian: libgloo-dev)".
  int open_flags = 0;  ///< Besides RTLD_NOW and RTLD_LOCAL.
};

/// Opens a module, which stays open, and returns its table.
/// Looks in these places, in this order:
/// - `path` (the file, or the folder it is in); if it is given, nowhere else;
/// - each folder of the variable MESHSTAGE_MODULE_PATH (separated by ':');
/// - beside the library or program that contains this code, in `meshstage/` beside it, and in the
/// library folder of the same prefix, so that an installed tree may be moved;
/// - the run paths of that library or program (CMake and pkg-config give a program with a static
/// libmeshstage the installed folder as one);
/// - the library folder that was configured.
/// Throws NotFound, listing each path tried, or InvalidState for a module of another version.
/// Threads: any.
[[nodiscard]] const void* open_module(const ModuleFile& wanted,
                                      const std::filesystem::path& path = {});

}  // namespace meshstage::detail
