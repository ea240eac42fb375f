#pragma once
#include <string>
#include <vector>

namespace meshstage::tools {

/// A backend that is a library of its own, sought at run time.
struct Backend {
  std::string name;
  bool found = false;
  std::string version;  ///< Empty if not found.
  std::string path;     ///< The file it came from.
  std::string detail;   ///< Why it was not found: the paths tried.
};
/// Opens what can be opened.
std::vector<Backend> find_backends();

}  // namespace meshstage::tools
