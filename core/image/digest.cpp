#include <algorithm>
#include <memory>
#include <new>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/replica.hpp>

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

std::vector<std::uint64_t> digest_parts(std::span<const std::byte> image,
                                        std::span<const ImageRange> ranges, std::size_t most) {
  if (most == 0) throw InvalidArgument("digest_parts(): at most 0 digests");
  const auto groups = std::min(most, ranges.size());
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  if (state == nullptr) throw std::bad_alloc();
  std::vector<std::uint64_t> digests;
  for (std::size_t group = 0, i = 0; group < groups; ++group) {
    // The first ranges.size() % groups of them have one more.
    const auto count = ranges.size() / groups + (group < ranges.size() % groups ? 1 : 0);
    XXH3_64bits_reset(state.get());
    for (const auto end = i + count; i < end; ++i) {
      const auto& [offset, bytes] = ranges[i];
      if (offset > image.size() || bytes > image.size() - offset) {
        throw InvalidArgument("digest_parts(): " + std::to_string(bytes) + " bytes at " +
                              std::to_string(offset) + " of an image of " +
                              std::to_string(image.size()));
      }
      XXH3_64bits_update(state.get(), image.data() + offset, bytes);
    }
    digests.push_back(XXH3_64bits_digest(state.get()));
  }
  return digests;
}

}  // namespace meshstage
