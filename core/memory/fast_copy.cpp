#include <meshstage/core/memory/fast_copy.hpp>

#include <algorithm>
#include <cassert>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace meshstage {

#if defined(__x86_64__)

namespace {

/// Streams whole cache lines; the ends that do not fill one go through memcpy.
__attribute__((target("avx2"))) void stream(std::byte* to, const std::byte* from,
                                            std::size_t n) noexcept {
  constexpr std::size_t kLine = 64;
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(to) % kLine;
  const std::size_t head = std::min(n, misaligned == 0 ? 0 : kLine - misaligned);
  std::memcpy(to, from, head);
  to += head;
  from += head;
  n -= head;
  for (; n >= 2 * kLine; n -= 2 * kLine, to += 2 * kLine, from += 2 * kLine) {
    const auto* const source = reinterpret_cast<const __m256i*>(from);
    auto* const target = reinterpret_cast<__m256i*>(to);
    const __m256i a = _mm256_loadu_si256(source);
    const __m256i b = _mm256_loadu_si256(source + 1);
    const __m256i c = _mm256_loadu_si256(source + 2);
    const __m256i d = _mm256_loadu_si256(source + 3);
    _mm256_stream_si256(target, a);
    _mm256_stream_si256(target + 1, b);
    _mm256_stream_si256(target + 2, c);
    _mm256_stream_si256(target + 3, d);
  }
  std::memcpy(to, from, n);
  // Streaming stores are weakly ordered: without this a later release store could become visible
  // first.
  _mm_sfence();
}

}  // namespace

bool has_streaming_copy() noexcept { return __builtin_cpu_supports("avx2") != 0; }

void fast_copy(std::span<std::byte> target, std::span<const std::byte> source,
               CopyHint hint) noexcept {
  assert(target.size() >= source.size());
  if (source.empty()) return;
  const bool streaming = hint == CopyHint::kStreaming ||
                         (hint == CopyHint::kAuto && source.size() >= kStreamingCrossover);
  if (streaming && has_streaming_copy()) {
    stream(target.data(), source.data(), source.size());
  } else {
    std::memcpy(target.data(), source.data(), source.size());
    // glibc's memcpy may stream as well; it fences itself.
  }
}

#else

bool has_streaming_copy() noexcept { return false; }

void fast_copy(std::span<std::byte> target, std::span<const std::byte> source, CopyHint) noexcept {
  assert(target.size() >= source.size());
  if (!source.empty()) std::memcpy(target.data(), source.data(), source.size());
}

#endif

}  // namespace meshstage
