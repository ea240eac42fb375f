#pragma once
#include <concepts>
#include <cstdint>
#include <utility>

#include <meshstage/core/error/export.hpp>
#include <meshstage/dtensor/dtensor.hpp>

namespace meshstage {

/// A number that a tensor is added to or multiplied by. It takes the tensor's dtype; nothing is
/// promoted.
class Scalar {
 public:
  template <std::floating_point F>
  Scalar(F value) noexcept : real_(static_cast<double>(value)) {}  // NOLINT
  template <std::integral I>
    requires(!std::same_as<I, bool>)
  Scalar(I value) noexcept  // NOLINT
      : integer_(static_cast<std::int64_t>(value)),
        real_(static_cast<double>(value)),
        is_integer_(std::in_range<std::int64_t>(value)) {}

  [[nodiscard]] bool is_integer() const noexcept { return is_integer_; }
  [[nodiscard]] std::int64_t integer() const noexcept { return integer_; }
  [[nodiscard]] double real() const noexcept { return real_; }

 private:
  std::int64_t integer_ = 0;
  double real_ = 0;
  bool is_integer_ = false;
};

/// Each element plus or times a number, in new row-major memory; no communication. CPU only.
///
/// Integers wrap around, and take a scalar only if it is a whole number that fits their dtype; f16
/// and bf16 are computed in f32. Throws InvalidArgument otherwise, and for bool and 8-bit floats.
/// Partials follow the definition: a sum gets the summand at coordinate 0 alone. Throws
/// InvalidArgument, on all ranks alike, where no local operation does it: a summand on a product,
/// a factor that is negative or not finite on min or max. Redistribute first then.
[[nodiscard]] MESHSTAGE_API DTensor operator+(const DTensor& tensor, Scalar summand);
[[nodiscard]] MESHSTAGE_API DTensor operator*(const DTensor& tensor, Scalar factor);
[[nodiscard]] inline DTensor operator+(Scalar summand, const DTensor& tensor) {
  return tensor + summand;
}
[[nodiscard]] inline DTensor operator*(Scalar factor, const DTensor& tensor) {
  return tensor * factor;
}

}  // namespace meshstage
