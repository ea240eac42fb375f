#pragma once
#include <complex>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// The type of one element. All types are little-endian in memory, on the wire and on disk.
enum class DType : std::uint8_t {
  kBool,  ///< One byte, 0 or 1.
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kU64,
  kI64,
  kF8E4M3,  ///< 8-bit float, 4 exponent bits, finite only (the FN variant).
  kF8E5M2,  ///< 8-bit float, 5 exponent bits.
  kF16,     ///< IEEE half.
  kBF16,    ///< The upper half of an F32.
  kF32,
  kF64,
  kC64,   ///< Two F32: real, imaginary.
  kC128,  ///< Two F64: real, imaginary.
};
inline constexpr std::size_t kDTypeCount = 17;

/// Bytes of one element: 1, 2, 4, 8 or 16.
MESHSTAGE_API std::size_t size_of(DType dtype) noexcept;
/// The type's name in safetensors: "F32", "BF16", "F8_E4M3", ... safetensors lacks "C128", which is
/// named like the others.
MESHSTAGE_API std::string_view to_string(DType dtype) noexcept;
/// The inverse of to_string; nothing for any other text.
MESHSTAGE_API std::optional<DType> dtype_from_string(std::string_view name) noexcept;

/// Element types that C++20 lacks, as their bits. They can be copied and compared; there is no
/// arithmetic on them.
struct Half {
  std::uint16_t bits = 0;
  friend bool operator==(Half, Half) = default;
};
struct BFloat16 {
  std::uint16_t bits = 0;
  friend bool operator==(BFloat16, BFloat16) = default;
};
struct Float8E4M3 {
  std::uint8_t bits = 0;
  friend bool operator==(Float8E4M3, Float8E4M3) = default;
};
struct Float8E5M2 {
  std::uint8_t bits = 0;
  friend bool operator==(Float8E5M2, Float8E5M2) = default;
};

/// dtype_of<T>: the DType of a C++ element type; a type without one does not compile.
template <class T>
inline constexpr DType dtype_of = T::no_dtype_for_this_type;
template <>
inline constexpr DType dtype_of<bool> = DType::kBool;
template <>
inline constexpr DType dtype_of<std::uint8_t> = DType::kU8;
template <>
inline constexpr DType dtype_of<std::int8_t> = DType::kI8;
template <>
inline constexpr DType dtype_of<std::uint16_t> = DType::kU16;
template <>
inline constexpr DType dtype_of<std::int16_t> = DType::kI16;
template <>
inline constexpr DType dtype_of<std::uint32_t> = DType::kU32;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::kI32;
template <>
inline constexpr DType dtype_of<unsigned long> = DType::kU64;
template <>
inline constexpr DType dtype_of<long> = DType::kI64;
template <>
inline constexpr DType dtype_of<unsigned long long> = DType::kU64;
template <>
inline constexpr DType dtype_of<long long> = DType::kI64;
template <>
inline constexpr DType dtype_of<Float8E4M3> = DType::kF8E4M3;
template <>
inline constexpr DType dtype_of<Float8E5M2> = DType::kF8E5M2;
template <>
inline constexpr DType dtype_of<Half> = DType::kF16;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::kBF16;
template <>
inline constexpr DType dtype_of<float> = DType::kF32;
template <>
inline constexpr DType dtype_of<double> = DType::kF64;
template <>
inline constexpr DType dtype_of<std::complex<float>> = DType::kC64;
template <>
inline constexpr DType dtype_of<std::complex<double>> = DType::kC128;

}  // namespace meshstage
