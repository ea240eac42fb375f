#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include <meshstage/core/error/error.hpp>

namespace meshstage::detail {

static_assert(std::endian::native == std::endian::little,
              "images are little-endian; swap here where the host is not");

template <class T>
  requires std::is_integral_v<T>
T load(std::span<const std::byte> bytes, std::size_t at) {
  if (at > bytes.size() || bytes.size() - at < sizeof(T)) {
    throw CorruptData("ends within a number at byte " + std::to_string(at));
  }
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

template <class T>
  requires std::is_integral_v<T>
void store(std::span<std::byte> bytes, std::size_t at, T value) {
  std::memcpy(bytes.subspan(at, sizeof(T)).data(), &value, sizeof(T));
}

/// Rounded up to a multiple of `to`. Wraps for values near 2^64: check those first.
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t to) {
  return (value + to - 1) / to * to;
}

}  // namespace meshstage::detail
