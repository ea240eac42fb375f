#include <meshstage/core/async/work.hpp>

namespace meshstage::detail {

std::exception_ptr abandoned() noexcept {
  try {
    return std::make_exception_ptr(Cancelled("the producer went away without a result"));
  } catch (...) {  // no memory for the words: then that is what the consumer hears
    return std::current_exception();
  }
}

}  // namespace meshstage::detail
