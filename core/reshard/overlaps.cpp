// Tensors of the new state that share memory: tied weights, views of one buffer. Where two of them
// overlap, what fills them has to be the same bytes.
#include <algorithm>
#include <cstring>
#include <map>
#include <span>

#include <meshstage/core/reshard/assembly_impl.hpp>
#include <meshstage/core/tree/tree_storages.hpp>

namespace meshstage::detail {
namespace {

/// Bytes [begin, end) of a memory, in which a target lies.
struct Extent {
  std::uint64_t begin = 0, end = 0;
  const BoxTarget* target = nullptr;
};

Extent extent_of(const BoxTarget& target, std::uint64_t begin) {
  return {begin, begin + spanned_bytes(target.tensor), &target};
}

/// The same elements, filled from the same memory: tied in the old job, too.
bool same(const Extent& a, const Extent& b) {
  const Tensor& x = a.target->tensor;
  const Tensor& y = b.target->tensor;
  const auto& from = a.target->copies;
  const auto& other = b.target->copies;
  return a.begin == b.begin && x.dtype() == y.dtype() && x.shape() == y.shape() &&
         x.strides() == y.strides() &&
         std::equal(from.begin(), from.end(), other.begin(), other.end(),
                    [](const BoxCopy& f, const BoxCopy& o) {
                      return f.part == o.part && f.from.first_byte() == o.from.first_byte() &&
                             f.from.strides() == o.from.strides();
                    });
}

/// Fills targets that overlap, in memory beside the state.
class Trial {
 public:
  Trial(std::uint64_t begin, std::uint64_t end)
      : begin_(begin), bytes_(end - begin), filled_(end - begin) {}

  /// False if a byte was filled with another value before.
  bool fill(const Extent& extent) {
    const Tensor& tensor = extent.target->tensor;
    const std::size_t width = size_of(tensor.dtype());
    for (const auto& [part, from] : extent.target->copies) {
      std::uint64_t first = extent.begin - begin_;
      for (std::size_t d = 0; d < part.shape.size(); ++d) {
        const std::int64_t skipped = part.offset[d] - extent.target->box.offset[d];
        first += static_cast<std::uint64_t>(skipped * tensor.strides()[d]) * width;
      }
      const Tensor row_major = from.contiguous();
      const std::byte* source = row_major.first_byte();
      Shape index(part.shape.size(), 0);
      for (std::int64_t n = part.numel(); n > 0; --n, source += width) {
        std::uint64_t at = first;
        for (std::size_t d = 0; d < index.size(); ++d) {
          at += static_cast<std::uint64_t>(index[d] * tensor.strides()[d]) * width;
        }
        if (!put(at, {source, width})) return false;
        for (std::size_t d = index.size(); d-- > 0;) {
          if (++index[d] < part.shape[d]) break;
          index[d] = 0;
        }
      }
    }
    return true;
  }

 private:
  bool put(std::uint64_t at, std::span<const std::byte> element) {
    for (const std::byte value : element) {
      if (filled_[at] && bytes_[at] != value) return false;
      filled_[at] = true;
      bytes_[at++] = value;
    }
    return true;
  }
  std::uint64_t begin_;
  std::vector<std::byte> bytes_;
  std::vector<bool> filled_;
};

bool repeats(const Tensor& tensor) {
  for (std::size_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.strides()[d] == 0 && tensor.size(d) > 1) return true;
  }
  return false;
}

/// Extents that touch none but each other.
void check_together(std::vector<Extent> together, std::uint64_t end) {
  std::vector<Extent> distinct;
  for (const Extent& e : together) {
    const auto known = std::any_of(distinct.begin(), distinct.end(),
                                   [&](const Extent& other) { return same(e, other); });
    if (!known) distinct.push_back(e);
  }
  if (distinct.size() == 1 && !repeats(distinct.front().target->tensor)) return;
  const std::uint64_t begin = together.front().begin;
  Trial trial(begin, end);
  for (const Extent& e : distinct) {
    if (trial.fill(e)) continue;
    for (const Extent& other : distinct) {  // the one of those before it that differs
      Trial pair(begin, end);
      if (&other != &e && (!pair.fill(other) || pair.fill(e))) continue;
      const std::string& path = e.target->path;
      throw mismatch(path, (&other == &e ? "elements of it share memory"
                                         : "it shares memory with " + other.target->path) +
                               std::string(" here, and their bytes differ in the old job"));
    }
  }
}

}  // namespace

void check_overlaps(const Value& state, const std::vector<BoxTarget>& targets) {
  const TreeStorages storages(state);
  std::map<const void*, std::vector<Extent>> by_memory;
  for (const BoxTarget& target : targets) {
    by_memory[storages.memory(target.tensor).identity()].push_back(
        extent_of(target, storages.offset(target.tensor)));
  }
  for (auto& [memory, extents] : by_memory) {
    std::sort(extents.begin(), extents.end(),
              [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    for (std::size_t first = 0; first < extents.size();) {
      std::uint64_t end = extents[first].end;
      std::size_t next = first + 1;
      for (; next < extents.size() && extents[next].begin < end; ++next) {
        end = std::max(end, extents[next].end);
      }
      check_together({extents.begin() + static_cast<std::ptrdiff_t>(first),
                      extents.begin() + static_cast<std::ptrdiff_t>(next)},
                     end);
      first = next;
    }
  }
}

}  // namespace meshstage::detail
