// What redistribute() allocates, counted at operator new: no more than the larger of both local
// tensors and one shard.
#include <atomic>
#include <cstdlib>
#include <new>

#include <meshstage/dtensor/dtensor.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/ranks_on_mesh.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

// Of the thread that allocates; blocks are freed by the rank that made them.
thread_local std::int64_t in_use = 0;
thread_local std::int64_t peak = 0;
constexpr std::size_t kHeader = 64;  // keeps the alignment that tensors ask for

void* counted(std::size_t bytes) {
  auto* block = static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + kHeader));
  if (block == nullptr) return nullptr;
  ::new (block) std::size_t(bytes);
  in_use += static_cast<std::int64_t>(bytes);
  peak = std::max(peak, in_use);
  return block + kHeader;
}

void give_back(void* p) noexcept {
  if (p == nullptr) return;
  auto* block = static_cast<std::byte*>(p) - kHeader;
  in_use -= static_cast<std::int64_t>(*reinterpret_cast<std::size_t*>(block));
  std::free(block);
}

}  // namespace

// Only what tensors use is counted: their storages are allocated with an alignment, nothing else in
// the library of any size is.
void* operator new(std::size_t bytes, std::align_val_t, const std::nothrow_t&) noexcept {
  return counted(bytes);
}
void* operator new(std::size_t bytes, std::align_val_t) {
  if (void* p = counted(bytes)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }

TEST_CASE("redistribute needs no more than the larger local tensor and one shard") {
  struct Case {
    const char* from;
    const char* to;
  };
  RanksOnMesh ranks(DeviceMesh::from_shape({2, 2}));
  // Even shards, uneven ones, and a dimension that leaves some ranks without elements.
  for (const Shape& shape : {Shape{512, 512}, Shape{509, 515}, Shape{3, 70001}}) {
    const std::int64_t whole = element_count(shape) * 8;
    const auto local_bytes = [&](const char* placements) {
      return Layout(std::vector<std::int64_t>{2, 2}, shape, parse_placements(placements))
                 .local_numel(std::vector<std::int64_t>{0, 0}) *
             8;
    };
    for (const auto& [from, to] : {Case{"S(0),R", "R,R"},
                                   {"S(1),R", "R,R"},
                                   {"R,R", "S(0),S(1)"},
                                   {"S(0),S(0)", "S(1),S(1)"},
                                   {"S(0),R", "R,S(0)"},
                                   {"P,P", "R,R"},
                                   {"P,P", "S(0),S(1)"},
                                   {"P,R", "S(1),R"},
                                   {"P(avg),S(1)", "R,R"},
                                   {"P,S(0)", "S(1),R"},
                                   {"R,R", "P,P"},
                                   {"P(max),P(sum)", "R,R"},
                                   {"P(product),S(1)", "S(0),S(0)"},
                                   {"P(min),P(avg)", "S(1),R"},
                                   {"S(1),R", "P(max),P(product)"}}) {
      INFO(to_string(shape) << ": " << from << " to " << to);
      std::vector<std::int64_t> used(4);
      std::vector<std::int64_t> result(4);
      ranks.run([&](MeshGroups& groups) {
        const auto part = local_shard(groups.mesh(), groups.rank(), shape, parse_placements(from));
        const auto d = DTensor::from_local(Tensor::zeros(part.shape, DType::kF64), groups,
                                           parse_placements(from), soon(), {.shape = shape});
        peak = in_use;
        const auto before = in_use;
        const auto moved = d.redistribute(groups, parse_placements(to), soon());
        used[static_cast<std::size_t>(groups.rank())] = peak - before;
        result[static_cast<std::size_t>(groups.rank())] =
            static_cast<std::int64_t>(moved.to_local().nbytes());
      });
      const auto larger = std::max(local_bytes(from), local_bytes(to));
      // A shard: the smaller side, or where nothing is sharded what a reduction leaves at a rank.
      const auto shard = std::min({local_bytes(from), local_bytes(to), (whole + 1) / 2});
      for (std::size_t r = 0; r < 4; ++r) {
        CHECK(used[r] >= result[r]);
        CHECK(used[r] <= larger + shard);
      }
    }
  }
}
