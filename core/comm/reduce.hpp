#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include <meshstage/core/comm/collectives.hpp>

/// Arithmetic of the reductions: into[i] = into[i] op from[i], one rounding for each.
namespace meshstage::collectives::arithmetic {

// IEEE binary16. Subnormals, infinities and NaN included; to nearest even.
inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000U) << 16;
  const std::uint32_t exponent = (h >> 10) & 0x1fU;
  const std::uint32_t mantissa = h & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  constexpr float kSmallest = 0x1p-24F;
  const float magnitude = static_cast<float>(mantissa) * kSmallest;
  return sign != 0 ? -magnitude : magnitude;
}

inline std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  const auto with_sign = [sign](std::uint32_t h) { return static_cast<std::uint16_t>(sign | h); };
  if (magnitude > 0x7f800000U) return with_sign(0x7e00U);   // NaN
  if (magnitude >= 0x477ff000U) return with_sign(0x7c00U);  // rounds to infinity
  if (magnitude < 0x38800000U) {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return with_sign(std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U);
  }
  const std::uint32_t odd = (magnitude >> 13) & 1U;
  return with_sign((magnitude - 0x38000000U + 0xfffU + odd) >> 13);
}

inline float bfloat_to_float(std::uint16_t b) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16);
}

inline std::uint16_t float_to_bfloat(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

/// An element as it is stored and as it is computed with.
template <class T>
struct Plain {
  using Stored = T;
  using Value = T;
  static Value load(Stored s) { return s; }
  static Stored store(Value v) { return v; }
};
struct Half {
  using Stored = std::uint16_t;
  using Value = float;
  static float load(Stored s) { return half_to_float(s); }
  static Stored store(float v) { return float_to_half(v); }
};
struct BFloat {
  using Stored = std::uint16_t;
  using Value = float;
  static float load(Stored s) { return bfloat_to_float(s); }
  static Stored store(float v) { return float_to_bfloat(v); }
};

template <class T>
T sum(T a, T b) {
  if constexpr (std::is_integral_v<T>) {  // wraps, without undefined behaviour
    return static_cast<T>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
  } else {
    return a + b;
  }
}
template <class T>
T product(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
  } else {
    return a * b;
  }
}
template <class T>
T least(T a, T b) {
  if constexpr (!std::is_integral_v<T>) {
    if (a != a || b != b) return a != a ? a : b;
  }
  return b < a ? b : a;
}
template <class T>
T greatest(T a, T b) {
  if constexpr (!std::is_integral_v<T>) {
    if (a != a || b != b) return a != a ? a : b;
  }
  return a < b ? b : a;
}

/// memcpy, because buffers of bytes need not be aligned; compilers make plain loads of it.
template <class E, class F>
void combine(std::byte* into, const std::byte* from, std::size_t bytes, F&& f) {
  using Stored = typename E::Stored;
  for (std::size_t i = 0; i + sizeof(Stored) <= bytes; i += sizeof(Stored)) {
    Stored a;
    Stored b;
    std::memcpy(&a, into + i, sizeof(Stored));
    std::memcpy(&b, from + i, sizeof(Stored));
    a = E::store(f(E::load(a), E::load(b)));
    std::memcpy(into + i, &a, sizeof(Stored));
  }
}

template <class E>
void reduce_as(std::span<std::byte> into, std::span<const std::byte> from, ReduceOp op) {
  using V = typename E::Value;
  const std::size_t n = into.size();
  switch (op) {
    case ReduceOp::kSum:
    case ReduceOp::kAvg:
      return combine<E>(into.data(), from.data(), n, [](V a, V b) { return sum(a, b); });
    case ReduceOp::kProduct:
      return combine<E>(into.data(), from.data(), n, [](V a, V b) { return product(a, b); });
    case ReduceOp::kMin:
      return combine<E>(into.data(), from.data(), n, [](V a, V b) { return least(a, b); });
    case ReduceOp::kMax:
      return combine<E>(into.data(), from.data(), n, [](V a, V b) { return greatest(a, b); });
  }
}

template <class E>
void divide_as(std::span<std::byte> data, int divisor) {
  using V = typename E::Value;
  if constexpr (!std::is_integral_v<V>) {
    combine<E>(data.data(), data.data(), data.size(),
               [divisor](V a, V /*same*/) { return a / static_cast<V>(divisor); });
  }
}

/// Adds halves to floats. Start sums from -0: it changes no bit of the first addend.
inline void add_halves(std::span<float> sums, std::span<const std::byte> halves) {
  for (std::size_t i = 0; i < sums.size(); ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, halves.data() + 2 * i, 2);
    sums[i] += half_to_float(half);
  }
}
inline void store_halves(std::span<std::byte> halves, std::span<const float> values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t half = float_to_half(values[i]);
    std::memcpy(halves.data() + 2 * i, &half, 2);
  }
}

/// Calls f(E()) with the element's type.
template <class F>
void with_element(Element element, F&& f) {
  switch (element) {
    case Element::kU8:
      return f(Plain<std::uint8_t>());
    case Element::kI8:
      return f(Plain<std::int8_t>());
    case Element::kI16:
      return f(Plain<std::int16_t>());
    case Element::kI32:
      return f(Plain<std::int32_t>());
    case Element::kI64:
      return f(Plain<std::int64_t>());
    case Element::kF16:
      return f(Half());
    case Element::kBF16:
      return f(BFloat());
    case Element::kF32:
      return f(Plain<float>());
    case Element::kF64:
      return f(Plain<double>());
  }
}

inline void reduce(std::span<std::byte> into, std::span<const std::byte> from, Element element,
                   ReduceOp op) {
  with_element(element, [&]<class E>(E) { reduce_as<E>(into, from, op); });
}
inline void divide(std::span<std::byte> data, int divisor, Element element) {
  with_element(element, [&]<class E>(E) { divide_as<E>(data, divisor); });
}

}  // namespace meshstage::collectives::arithmetic
