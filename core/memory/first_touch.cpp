#include <meshstage/core/memory/first_touch.hpp>

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <exception>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/core/memory/resource.hpp>

#ifndef MADV_POPULATE_WRITE  // headers older than the kernel
#define MADV_POPULATE_WRITE 23
#endif

namespace meshstage {
namespace {

// A call of the kernel's for so much: whole huge pages, and short enough that threads end together.
constexpr std::size_t kPart = std::size_t{8} << 20U;
constexpr std::size_t kLeast = 4 * kPart;
// Huge pages for so much in a call: the kernel has every processor drain its lists of pages first,
// which takes long where another program keeps a processor busy.
constexpr std::uint64_t kHugePart = std::uint64_t{256} << 20U;

unsigned hands_or_default(unsigned hands) {
  return hands != 0 ? hands : default_copy_threads(available_processors(), Beside::kNothing);
}

/// A part of so many bytes, whole huge pages, so that each hand has one.
std::uint64_t huge_part(std::uint64_t bytes, unsigned hands) {
  const auto share = (bytes / hands + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  return std::clamp<std::uint64_t>(share, kHugePageBytes, kHugePart);
}

}  // namespace

void first_touch(std::span<std::byte> memory, unsigned hands) noexcept {
  if (memory.size() < kLeast) return;
  try {
    Crew crew("ms-touch", hands_or_default(hands));
    crew.run((memory.size() + kPart - 1) / kPart, [&](std::size_t i) {
      const auto part = memory.subspan(i * kPart, std::min(kPart, memory.size() - i * kPart));
      while (::madvise(part.data(), part.size(), MADV_POPULATE_WRITE) != 0 && errno == EINTR) {
      }
    });
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): no memory for a crew, say
  }
}

void reserve_memory(File& file, std::uint64_t from, std::uint64_t size, unsigned hands) {
  if (size >= kLeast && from <= size - kLeast) {
    try {
      const std::uint64_t begin = from / kHugePageBytes * kHugePageBytes;
      Crew crew("ms-touch", hands_or_default(hands));
      const std::uint64_t part = huge_part(size - begin, crew.hands());
      std::atomic<bool> more{true};
      crew.run((size - begin + part - 1) / part, [&](std::size_t i) {
        const std::uint64_t at = begin + i * part;
        if (more && !file.reserve_huge(std::max(at, from), std::min(at + part, size))) more = false;
      });
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): no memory for a crew, say
    }
  }
  file.reserve(size);
}

}  // namespace meshstage
