#include "tools/snapshot/numbers.hpp"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include <meshstage/core/error/little_endian.hpp>

namespace meshstage::tools {
namespace {

using little_endian::load;

/// A small float of `exponent` and `mantissa` bits, IEEE-like; `finite` has no infinity and NaN
/// only where all bits are set.
double small_float(unsigned bits, int exponent_bits, int mantissa_bits, bool finite) {
  const unsigned mantissa = bits & ((1U << mantissa_bits) - 1);
  const unsigned top = (1U << exponent_bits) - 1;
  const unsigned exponent = (bits >> mantissa_bits) & top;
  const bool negative = ((bits >> (mantissa_bits + exponent_bits)) & 1U) != 0;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double value = 0;
  if (exponent == top && (!finite || mantissa == (1U << mantissa_bits) - 1)) {
    value = mantissa == 0 ? std::numeric_limits<double>::infinity()
                          : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else {
    value = std::ldexp(mantissa + (1U << mantissa_bits),
                       static_cast<int>(exponent) - bias - mantissa_bits);
  }
  return negative ? -value : value;
}

constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();

struct Element {
  double number = kNoNumber;  ///< NaN where it is none.
  std::string text;
};

template <class T>
Element integer(const std::byte* at) {
  const auto value = load<T>(at);
  return {static_cast<double>(value), fmt::format("{}", value)};
}

Element floating(double value) { return {value, fmt::format("{:.9g}", value)}; }

template <class T>
Element complex(const std::byte* at) {
  return {kNoNumber, fmt::format("{:.9g}{:+.9g}i", load<T>(at), load<T>(at + sizeof(T)))};
}

Element element(DType dtype, const std::byte* at) {
  switch (dtype) {
    case DType::kBool: {
      const auto byte = load<std::uint8_t>(at);
      return {static_cast<double>(byte), byte == 0   ? "false"
                                         : byte == 1 ? "true"
                                                     : fmt::format("bool 0x{:02x}", byte)};
    }
    case DType::kU8:
      return integer<std::uint8_t>(at);
    case DType::kI8:
      return integer<std::int8_t>(at);
    case DType::kU16:
      return integer<std::uint16_t>(at);
    case DType::kI16:
      return integer<std::int16_t>(at);
    case DType::kU32:
      return integer<std::uint32_t>(at);
    case DType::kI32:
      return integer<std::int32_t>(at);
    case DType::kU64:
      return integer<std::uint64_t>(at);
    case DType::kI64:
      return integer<std::int64_t>(at);
    case DType::kF8E4M3:
      return floating(small_float(load<std::uint8_t>(at), 4, 3, true));
    case DType::kF8E5M2:
      return floating(small_float(load<std::uint8_t>(at), 5, 2, false));
    case DType::kF16:
      return floating(small_float(load<std::uint16_t>(at), 5, 10, false));
    case DType::kBF16:
      return floating(
          std::bit_cast<float>(static_cast<std::uint32_t>(load<std::uint16_t>(at)) << 16U));
    case DType::kF32:
      return floating(load<float>(at));
    case DType::kF64: {
      const auto value = load<double>(at);
      return {value, fmt::format("{:.17g}", value)};
    }
    case DType::kC64:
      return complex<float>(at);
    case DType::kC128:
      return complex<double>(at);
  }
  return {};
}

std::string index_text(std::int64_t flat, const Shape& shape) {
  Shape index(shape.size());
  for (std::size_t d = shape.size(); d-- > 0;) {
    index[d] = flat % shape[d];
    flat /= shape[d];
  }
  return to_string(index);
}

}  // namespace

ElementDifference compare_elements(const Tensor& a, const Tensor& b) {
  const Tensor left = a.contiguous();
  const Tensor right = b.contiguous();
  const std::size_t width = size_of(a.dtype());
  ElementDifference found;
  bool has_numbers = false;
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const auto* const x = left.first_byte() + static_cast<std::size_t>(i) * width;
    const auto* const y = right.first_byte() + static_cast<std::size_t>(i) * width;
    if (std::memcmp(x, y, width) == 0) continue;
    if (found.count++ == 0) {
      found.index = index_text(i, a.shape());
      found.left = element(a.dtype(), x).text;
      found.right = element(a.dtype(), y).text;
      if (found.left == found.right) {  // two NaNs, or digits beyond those shown
        const auto hex = [&](const std::byte* at) {
          std::string text = " (0x";
          for (auto k = width; k-- > 0;)
            text += fmt::format("{:02x}", std::to_integer<unsigned>(at[k]));
          return text + ")";
        };
        found.left += hex(x);
        found.right += hex(y);
      }
    }
    const double distance = std::abs(element(a.dtype(), x).number - element(a.dtype(), y).number);
    if (std::isnan(distance)) continue;
    found.largest = has_numbers ? std::max(found.largest, distance) : distance;
    has_numbers = true;
  }
  if (!has_numbers) found.largest = kNoNumber;
  return found;
}

}  // namespace meshstage::tools
