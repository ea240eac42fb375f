#pragma once
#include <filesystem>
#include <string>

namespace meshstage::detail {

/// The file of one rank where the user names one for all: "trace.json" is trace.r3.json of rank 3.
inline std::filesystem::path rank_file(std::filesystem::path path, int rank) {
  const std::string extension = path.extension().string();
  return path.replace_extension("r" + std::to_string(rank) + extension);
}

}  // namespace meshstage::detail
