// XXH3 (core/device/xxh3.hpp) by AVX2, with stores on the way.
#include <meshstage/core/image/digesting_copy.hpp>

#include <algorithm>
#include <cstring>

#include <meshstage/core/device/xxh3.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/memory/fast_copy.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace meshstage::detail {
namespace {

using xxh3::kGroup;
using xxh3::kLeastBytes;
using xxh3::kStripe;

#if defined(__x86_64__)

using xxh3::Lanes;

const std::byte* secret() { return reinterpret_cast<const std::byte*>(xxh3::kSecret.data()); }

__attribute__((target("avx2"))) inline __m256i load(const std::byte* from) noexcept {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// Half of a stripe: its words are added to the neighbour lanes, and their products with the secret
// to their own.
__attribute__((target("avx2"))) inline __m256i add(__m256i lanes, __m256i data,
                                                   const std::byte* key) noexcept {
  const __m256i keyed = _mm256_xor_si256(data, load(key));
  const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
  return _mm256_add_epi64(lanes, _mm256_add_epi64(_mm256_shuffle_epi32(data, 0x4E), product));
}

__attribute__((target("avx2"))) inline __m256i scramble(__m256i lanes,
                                                        const std::byte* key) noexcept {
  lanes = _mm256_xor_si256(_mm256_xor_si256(lanes, _mm256_srli_epi64(lanes, 47)), load(key));
  const __m256i prime = _mm256_set1_epi64x(static_cast<std::int64_t>(xxh3::kPrime32A));
  const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(lanes, 32), prime);
  return _mm256_add_epi64(_mm256_mul_epu32(lanes, prime), _mm256_slli_epi64(high, 32));
}

enum class Store { kNone, kCached, kStreaming };

// Digests `count` stripes from number `first` on, and stores them on the way.
template <Store kStore>
__attribute__((target("avx2"))) void pass(Lanes& lanes, std::size_t first, std::size_t count,
                                          const std::byte* from, std::byte* to) noexcept {
  const std::byte* const keys = secret();
  auto* const kept = reinterpret_cast<__m256i*>(lanes.data());
  __m256i low = _mm256_load_si256(kept);
  __m256i high = _mm256_load_si256(kept + 1);
  std::size_t in_group = first % kGroup;
  while (count > 0) {
    const std::size_t end = std::min(kGroup, in_group + count);
    count -= end - in_group;
    for (; in_group < end; ++in_group, from += kStripe) {
      const __m256i a = load(from);
      const __m256i b = load(from + kStripe / 2);
      if constexpr (kStore != Store::kNone) {
        auto* const target = reinterpret_cast<__m256i*>(to);
        if constexpr (kStore == Store::kStreaming) {
          _mm256_stream_si256(target, a);
          _mm256_stream_si256(target + 1, b);
        } else {
          _mm256_storeu_si256(target, a);
          _mm256_storeu_si256(target + 1, b);
        }
        to += kStripe;
      }
      low = add(low, a, keys + 8 * in_group);
      high = add(high, b, keys + 8 * in_group + kStripe / 2);
    }
    if (in_group == kGroup) {
      low = scramble(low, keys + xxh3::kScrambleSecret);
      high = scramble(high, keys + xxh3::kScrambleSecret + kStripe / 2);
      in_group = 0;
    }
  }
  _mm256_store_si256(kept, low);
  _mm256_store_si256(kept + 1, high);
}

__attribute__((target("avx2"))) void add_last(Lanes& lanes, const std::byte* last) noexcept {
  const std::byte* const key = secret() + xxh3::kLastSecret;
  auto* const kept = reinterpret_cast<__m256i*>(lanes.data());
  _mm256_store_si256(kept, add(_mm256_load_si256(kept), load(last), key));
  _mm256_store_si256(kept + 1,
                     add(_mm256_load_si256(kept + 1), load(last + kStripe / 2), key + kStripe / 2));
}

void fence() noexcept { _mm_sfence(); }

#endif

}  // namespace

DigestingCopy::DigestingCopy(std::span<std::byte> block, bool streaming) noexcept
    : block_(block),
      fused_(block.size() >= kLeastBytes && has_streaming_copy()),
      streaming_(streaming && reinterpret_cast<std::uintptr_t>(block.data()) % 32 == 0),
      stripes_(block.empty() ? 0 : (block.size() - 1) / kStripe),
      lanes_(xxh3::kBegin) {}

#if defined(__x86_64__)

void DigestingCopy::write(std::span<const std::byte> bytes) noexcept {
  if (!fused_) {
    fast_copy(block_.subspan(at_), bytes, streaming_ ? CopyHint::kStreaming : CopyHint::kAuto);
    at_ += bytes.size();
    return;
  }
  const auto store = [&](std::size_t n) {
    std::memcpy(block_.data() + at_, bytes.data(), n);
    bytes = bytes.subspan(n);
    at_ += n;
  };
  if (const auto begun = at_ % kStripe; begun != 0) store(std::min(bytes.size(), kStripe - begun));
  digest_written();
  const auto count = std::min(bytes.size() / kStripe, stripes_ - std::min(stripes_, at_ / kStripe));
  if (count > 0) {  // then at_ is at a stripe's begin
    const auto how = streaming_ ? pass<Store::kStreaming> : pass<Store::kCached>;
    how(lanes_, at_ / kStripe, count, bytes.data(), block_.data() + at_);
    bytes = bytes.subspan(count * kStripe);
    at_ += count * kStripe;
    digested_ = at_;
  }
  if (!bytes.empty()) store(bytes.size());
  digest_written();
}

// Whole stripes that were stored in parts.
void DigestingCopy::digest_written() noexcept {
  const auto count = std::min(at_ / kStripe, stripes_) - digested_ / kStripe;
  pass<Store::kNone>(lanes_, digested_ / kStripe, count, block_.data() + digested_, nullptr);
  digested_ += count * kStripe;
}

Digest DigestingCopy::finish() noexcept {
  if (streaming_) fence();
  if (!fused_) return digest_block(block_);
  add_last(lanes_, block_.data() + block_.size() - kStripe);
  const auto half = [this](std::size_t at, std::uint64_t begin) {
    return xxh3::fold(lanes_, xxh3::kSecret, at, begin);
  };
  return {half(xxh3::kUpperFoldSecret, xxh3::upper_begin(block_.size())),
          half(xxh3::kFoldSecret, xxh3::lower_begin(block_.size()))};
}

#else

void DigestingCopy::write(std::span<const std::byte> bytes) noexcept {
  fast_copy(block_.subspan(at_), bytes);
  at_ += bytes.size();
}
void DigestingCopy::digest_written() noexcept {}
Digest DigestingCopy::finish() noexcept { return digest_block(block_); }

#endif

void DigestingCopy::write_zeros(std::size_t bytes) noexcept {
  std::memset(block_.data() + at_, 0, bytes);
  take(bytes);
}

void DigestingCopy::take(std::size_t bytes) noexcept {
  at_ += bytes;
  if (fused_) digest_written();
}

}  // namespace meshstage::detail
