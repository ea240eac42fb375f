#pragma once
#include <source_location>
#include <string>

#include <meshstage/core/error/error.hpp>

namespace meshstage::test {

/// For a rank's thread, where Catch's own assertions may not be used: throws `otherwise`, with the
/// place of the call.
inline void require(bool holds, const std::string& otherwise,
                    const std::source_location& at = std::source_location::current()) {
  if (holds) return;
  throw InvalidState(std::string(at.file_name()) + ":" + std::to_string(at.line()) + ": " +
                     otherwise);
}

}  // namespace meshstage::test
