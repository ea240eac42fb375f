#include <meshstage/core/os/standard_error.hpp>

#include <iostream>

namespace meshstage {

void write_to_standard_error(const std::string& line) noexcept {
  try {
    std::cerr << line + "\n";
  } catch (...) {  // NOLINT(bugprone-empty-catch): no memory for the text; nobody is left to tell
  }
}

}  // namespace meshstage
