#include <meshstage/core/async/work.hpp>
#include <meshstage/core/error/exception_of.hpp>

namespace meshstage::detail {

std::exception_ptr abandoned() noexcept {
  return exception_of([] { return Cancelled("the producer went away without a result"); });
}

}  // namespace meshstage::detail
