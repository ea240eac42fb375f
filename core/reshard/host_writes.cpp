#include <meshstage/core/reshard/host_writes_impl.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/copy_parts.hpp>
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/core/memory/fast_copy.hpp>

namespace meshstage::detail {
namespace {

std::span<const std::byte> memory_of(const Tensor& tensor) {
  return {tensor.first_byte(), spanned_bytes(tensor)};
}

bool share_memory(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.data() < b.data() + b.size() && b.data() < a.data() + a.size();
}

struct Write {
  Tensor to, from;
  std::span<const std::byte> memory;  ///< From the first element of `to` to its last one.

  /// One copy of bytes does it.
  [[nodiscard]] bool is_range() const {
    return to.is_contiguous() && from.is_contiguous() && !share_memory(memory, memory_of(from));
  }
};

/// All writes, by address; none twice.
std::vector<Write> all_writes(std::span<const BoxTarget> targets) {
  std::vector<Write> writes;
  for (const BoxTarget& target : targets) {
    if (!target.tensor.device().is_cpu()) continue;
    for (const auto& [part, from] : target.copies) {
      Tensor to = view_of(target.tensor, target.box, part);
      if (to.numel() == 0) continue;
      const auto memory = memory_of(to);
      writes.push_back({std::move(to), from, memory});
    }
  }
  std::stable_sort(writes.begin(), writes.end(), [](const Write& a, const Write& b) {
    return std::pair(a.memory.data(), a.memory.size()) <
           std::pair(b.memory.data(), b.memory.size());
  });
  const auto again = std::unique(writes.begin(), writes.end(), [](const Write& a, const Write& b) {
    return a.memory.data() == b.memory.data() && a.memory.size() == b.memory.size() &&
           a.to.is_contiguous() && b.to.is_contiguous();
  });
  writes.erase(again, writes.end());
  return writes;
}

/// Writes into memory of which no other run has any.
using Run = std::span<const Write>;

std::vector<Run> runs_of(std::span<const Write> writes) {
  std::vector<Run> runs;
  for (std::size_t i = 0; i < writes.size();) {
    const std::size_t first = i;
    const std::byte* end = nullptr;
    for (; i < writes.size() && (i == first || writes[i].memory.data() < end); ++i) {
      const auto memory = writes[i].memory;
      end = std::max(end, memory.data() + memory.size());
    }
    runs.push_back(writes.subspan(first, i - first));
  }
  return runs;
}

}  // namespace

void write_to_host(std::span<const BoxTarget> targets, unsigned hands) {
  const auto writes = all_writes(targets);
  CopyParts parts;
  std::vector<const Write*> ranges;
  std::vector<Run> others;
  std::uint64_t bytes_of_others = 0;
  for (const Run run : runs_of(writes)) {
    if (run.size() == 1 && run.front().is_range()) {
      parts.add(run.front().memory);
      ranges.push_back(&run.front());
    } else {
      others.push_back(run);
      for (const Write& write : run) bytes_of_others += write.to.nbytes();
    }
  }
  if (hands == 0) hands = default_copy_threads(available_processors(), Beside::kNothing);
  const bool large = parts.is_large() || bytes_of_others >= kStreamingCrossover;
  Crew crew("ms-assemble", large ? hands : 1);
  parts.run(&crew, 0, [&](const CopyParts::Piece& piece) {
    const Write& write = *ranges[piece.range];
    const std::span<std::byte> to(write.to.first_byte(), write.memory.size());
    const auto from = memory_of(write.from);
    if (from.size() != to.size()) {
      throw InvalidArgument("a part of " + std::to_string(from.size()) + " bytes for memory of " +
                            std::to_string(to.size()));
    }
    fast_copy(piece.of(to), piece.of(from), piece.hint);
  });
  crew.run(others.size(), [&](std::size_t i) {
    for (const Write& write : others[i]) write.to.copy_from(write.from);
  });
}

}  // namespace meshstage::detail
