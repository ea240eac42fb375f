#include <array>
#include <memory>
#include <new>

#include <meshstage/core/identity/digest.hpp>

// On x86-64 the library picks AVX2 or AVX-512 at run time; elsewhere it was built for its target.
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

namespace meshstage {

std::uint64_t digest64(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}

Digest digest128(std::span<const std::byte> bytes) noexcept {
  const auto hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.high64, hash.low64};
}

Digest digest_block(std::span<const std::byte> bytes) noexcept {
  const auto hash = XXH3_128bits(bytes.data(), bytes.size());
  // Of longer inputs XXH3-64 is the lower half of XXH3-128.
  constexpr std::size_t kShort = 240;
  return {hash.high64, bytes.size() <= kShort ? digest64(bytes) : hash.low64};
}

Digest digest128_joined(std::span<const std::span<const std::byte>> parts) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  if (state == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state.get());
  for (const auto& part : parts) XXH3_128bits_update(state.get(), part.data(), part.size());
  const auto hash = XXH3_128bits_digest(state.get());
  return {hash.high64, hash.low64};
}

std::string to_hex(const Digest& digest) {
  constexpr std::array<char, 17> kDigits{"0123456789abcdef"};
  std::string text(32, '0');
  for (std::size_t i = 0; i < 16; ++i) {
    text[15 - i] = kDigits[(digest.high >> (4 * i)) & 15];
    text[31 - i] = kDigits[(digest.low >> (4 * i)) & 15];
  }
  return text;
}

}  // namespace meshstage
