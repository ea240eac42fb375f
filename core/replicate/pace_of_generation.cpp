#include <meshstage/core/replicate/pace_of_generation.hpp>

#include <exception>

#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {

void PaceOfGeneration::leave() noexcept {
  left_.fail(std::make_exception_ptr(Cancelled("the generation was left")));
}

}  // namespace meshstage::replicate
