#pragma once
#include <string>
#include <vector>

namespace meshstage::tools {

/// A backend that drags in a library: sought at run time (Gloo, the NVIDIA driver), or linked
/// (hiredis).
struct Backend {
  std::string name;
  bool found = false;
  std::string version;  ///< Empty if not found.
  std::string path;     ///< The file it came from, or what it is for.
  std::string detail;   ///< Why it was not found: the paths tried.
};
/// Opens what can be opened; makes no context on any device.
std::vector<Backend> find_backends();

}  // namespace meshstage::tools
