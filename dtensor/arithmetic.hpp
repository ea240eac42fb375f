#pragma once
#include <concepts>
#include <cstdint>
#include <optional>
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
      : bits_(static_cast<std::uint64_t>(value)),
        real_(static_cast<double>(value)),
        is_integer_(true),
        negative_(std::cmp_less(value, 0)) {}

  /// It was given as an integer: integer() is exact, real() may be rounded.
  [[nodiscard]] bool is_integer() const noexcept { return is_integer_; }
  /// The integer; nothing if it was given as a floating number, or T does not hold it.
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
