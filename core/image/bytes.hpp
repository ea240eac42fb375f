#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>

namespace meshstage::detail {

template <class T>
  requires std::is_integral_v<T>
T load(std::span<const std::byte> bytes, std::size_t at) {
  if (at > bytes.size() || bytes.size() - at < sizeof(T)) {
    throw CorruptData("ends within a number at byte " + std::to_string(at));
  }
  return little_endian::load<T>(bytes.data() + at);
}

template <class T>
  requires std::is_integral_v<T>
void store(std::span<std::byte> bytes, std::size_t at, T value) {
  little_endian::store(bytes.subspan(at, sizeof(T)).data(), value);
}

/// `value` rounded up to a multiple of `to`. Wraps for values near 2^64: check those first.
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t to) {
  return (value + to - 1) / to * to;
}

}  // namespace meshstage::detail
