#pragma once
#include <exception>

/// Private to comm.
namespace meshstage::detail {

/// What `make` makes, as an exception, where nothing may be thrown: without memory for it, that.
template <class Make>
[[nodiscard]] std::exception_ptr exception_of(Make make) noexcept {
  try {
    return std::make_exception_ptr(make());
  } catch (...) {
    return std::current_exception();
  }
}

}  // namespace meshstage::detail
