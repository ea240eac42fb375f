#pragma once
#include <concepts>
#include <cstdint>
#include <optional>
#include <utility>

#include <meshstage/core/error/export.hpp>
#include <meshstage/dtensor/dtensor.hpp>

namespace meshstage {

/// A number that is added to a tensor's elements or multiplies them. It takes the tensor's dtype;
/// there is no promotion.
class Scalar {
 public:
  template <std::floating_point F>
  Scalar(F value) noexcept : real_(static_cast<double>(value)) {}  // NOLINT
  template <std::integral I>
    requires(!std::same_as<I, bool>)
  Scalar(I value) noexcept  // NOLINT
      : bits_(static_cast<std::uint64_t>(value)),
        real_(static_cast<double>(value)),
        is_integer_(true),
        negative_(std::cmp_less(value, 0)) {}

  /// True if it was given as an integer: then integer() is exact, and real() may be rounded.
  [[nodiscard]] bool is_integer() const noexcept { return is_integer_; }
  /// The integer; nothing if it was given as a floating number, or if it does not fit T.
  template <std::integral T>
  [[nodiscard]] std::optional<T> integer() const noexcept {
    const auto is = static_cast<std::int64_t>(bits_);
    const bool fits = is_integer_ && (negative_ ? std::in_range<T>(is) : std::in_range<T>(bits_));
    return fits ? std::optional<T>(static_cast<T>(bits_)) : std::nullopt;
  }
  [[nodiscard]] double real() const noexcept { return real_; }

 private:
  std::uint64_t bits_ = 0;  // of an integer, two's complement
  double real_ = 0;
  bool is_integer_ = false;
  bool negative_ = false;
};

/// Adds a number to each element or multiplies each by it. The result has new row-major memory;
/// there is no communication. CPU only.
///
/// Integers wrap around, and take a scalar only if it is a whole number that fits their dtype; f16
/// and bf16 are computed in f32. Throws InvalidArgument otherwise, and for bool and 8-bit floats. A
/// Partial(sum) adds the summand only at coordinate 0, because the tensor is the sum of all parts.
/// Throws InvalidArgument, the same on all ranks, where no local operation gives the result: a
/// summand with Partial(product), and a factor that is negative or not finite with min or max.
/// Redistribute first then.
[[nodiscard]] MESHSTAGE_API DTensor operator+(const DTensor& tensor, Scalar summand);
[[nodiscard]] MESHSTAGE_API DTensor operator*(const DTensor& tensor, Scalar factor);
[[nodiscard]] inline DTensor operator+(Scalar summand, const DTensor& tensor) {
  return tensor + summand;
}
[[nodiscard]] inline DTensor operator*(Scalar factor, const DTensor& tensor) {
  return tensor * factor;
}

}  // namespace meshstage
