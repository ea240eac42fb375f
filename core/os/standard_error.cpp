#include <meshstage/core/os/standard_error.hpp>

#include <iostream>
#include <new>

namespace meshstage {

void write_to_standard_error(const std::string& line) noexcept {
  try {
    try {
      std::cerr << line + "\n";
    } catch (const std::bad_alloc&) {
      std::cerr << line << '\n';  // another thread's line may come between
    }
  } catch (...) {  // NOLINT(bugprone-empty-catch): a stream that throws; nobody is left to tell
  }
}

}  // namespace meshstage
