#include <meshstage/core/memory/first_touch.hpp>

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <exception>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/memory/copy_threads.hpp>

#ifndef MADV_POPULATE_WRITE  // headers older than the kernel
#define MADV_POPULATE_WRITE 23
#endif

namespace meshstage {
namespace {

// A call of the kernel's for so much: whole huge pages, and short enough that threads end together.
constexpr std::size_t kPart = std::size_t{8} << 20U;
constexpr std::size_t kLeast = 4 * kPart;

}  // namespace

void first_touch(std::span<std::byte> memory, unsigned hands) noexcept {
  if (memory.size() < kLeast) return;
  try {
    if (hands == 0) hands = default_copy_threads(available_processors(), Beside::kNothing);
    Crew crew("ms-touch", hands);
    crew.run((memory.size() + kPart - 1) / kPart, [&](std::size_t i) {
      const auto part = memory.subspan(i * kPart, std::min(kPart, memory.size() - i * kPart));
      while (::madvise(part.data(), part.size(), MADV_POPULATE_WRITE) != 0 && errno == EINTR) {
      }
    });
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): no memory for a crew, say
  }
}

}  // namespace meshstage
