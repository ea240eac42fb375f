#pragma once
#include <source_location>
#include <string>

#include <meshstage/core/error/error.hpp>

namespace meshstage::test {

/// Throws `why`, with the place of the call.
[[noreturn]] inline void fail_test(
    const std::string& why, const std::source_location& at = std::source_location::current()) {
  throw InvalidState(std::string(at.file_name()) + ":" + std::to_string(at.line()) + ": " + why);
}

/// For a rank's thread, where Catch's own assertions may not be used: throws `otherwise`, with the
/// place of the call.
inline void require(bool holds, const std::string& otherwise,
                    const std::source_location& at = std::source_location::current()) {
  if (!holds) fail_test(otherwise, at);
}

}  // namespace meshstage::test
