#pragma once
#include <cstdint>
#include <exception>
#include <optional>
#include <string>

#include <meshstage/core/error/error.hpp>

namespace meshstage {

/// What `make` makes, as an exception, where nothing may be thrown. If `make` throws, for example
/// because there is no memory for a text, the result is what it threw.
template <class Make>
[[nodiscard]] std::exception_ptr exception_of(Make make) noexcept {
  try {
    return std::make_exception_ptr(make());
  } catch (...) {
    return std::current_exception();
  }
}

/// What throw_error() throws.
[[nodiscard]] inline std::exception_ptr exception_of(ErrorKind kind, const std::string& message,
                                                     std::optional<int> rank = {},
                                                     std::string path = {}) noexcept {
  try {
    throw_error(kind, message, rank, {}, std::move(path));
  } catch (...) {
    return std::current_exception();
  }
}

}  // namespace meshstage
