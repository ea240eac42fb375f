#pragma once
#include <bit>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <vector>

/// Little-endian numbers, the form they have in every image, message and header of meshstage.
namespace meshstage::little_endian {

static_assert(std::endian::native == std::endian::little,
              "images and messages are little-endian; swap here where the host is not");

/// Reads a T at `at`, at any alignment. For all functions here the caller has checked that
/// sizeof(T) bytes are there.
template <class T>
  requires std::is_trivially_copyable_v<T>
[[nodiscard]] T load(const std::byte* at) noexcept {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <class T>
  requires std::is_trivially_copyable_v<T>
void store(std::byte* at, const T& value) noexcept {
  std::memcpy(at, &value, sizeof(T));
}

template <class T>
  requires std::is_trivially_copyable_v<T>
void append(std::vector<std::byte>& to, const T& value) {
  to.resize(to.size() + sizeof(T));
  store(to.data() + to.size() - sizeof(T), value);
}

}  // namespace meshstage::little_endian
