#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tree/boxes.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

namespace detail {
struct AssemblyPlan;
}

/// What a value is that lies on no mesh: a scalar, or a plain tensor. It says what another number
/// of ranks makes of the values that the ranks had.
enum class PlainKind : std::uint8_t {
  kSame,     ///< Every rank has the same bytes. Other bytes are refused.
  kFirst,    ///< What the first rank has that has it is good for all.
  kPerRank,  ///< Rank r takes rank r's. A rank that the old job lacked keeps what it begins with.
  kSummed,   ///< Rank 0 takes the sum over all ranks, the other ranks take 0.
};

/// How a state is put together out of another number of ranks' states.
struct ReshardOptions {
  /// Reads what lies on meshes: dtensor::register_boxes(), sharded::register_boxes().
  BoxReaders readers = {};
  /// The kind of the plain value at a path ("rng.state", as Path::text()). Null: kSame for all.
  std::function<PlainKind(const std::string& path)> plain = {};
};

/// One rank's state, put together out of the states of another number of ranks.
///
///     auto assembly = Assembly::plan(old_states, state, rank, world_size, options);  // checks all
///     assembly.write();                                       // then brings the bytes into
///     `state`
///
/// What lies on a mesh is matched by path, dtype and shape of the whole tensor. Meshes, placements
/// and shards may differ, and so may the types: a DTensor takes the boxes of a ShardedTensor or of
/// a plain tensor, and a plain tensor takes the whole of a DTensor. Tensors keep their storages.
/// Threads: one; nobody may read or write `state` or the old states meanwhile.
class MESHSTAGE_API Assembly {
 public:
  /// Compares everything and writes nothing. `old` are the states of the old job, by rank: views of
  /// files, say, whose tensors the Assembly keeps. `rank` of `world_size` is whose state `state` is
  /// in the new job.
  ///
  /// Throws StructureMismatch, with the path, for: a path that no old rank has; a path that every
  /// old rank has and `state` lacks; other kinds, dtypes or shapes; an element that no old rank
  /// has; plain values that differ without a kind that says what to do; a type that has no reader
  /// and differs; tensors that share memory here and had other bytes there. Throws InvalidState for
  /// memory that cannot be written, or that is not the CPU's; CorruptData as the readers.
  [[nodiscard]] static Assembly plan(std::span<const Value> old, Value state, int rank,
                                     int world_size, const ReshardOptions& options);
  Assembly(Assembly&&) noexcept;
  Assembly& operator=(Assembly&&) noexcept;
  ~Assembly();

  /// Tensors whose copies along a replicated mesh dimension differed in the old job: of each, all
  /// boxes are taken from the copy that is first by coordinates, by every rank alike. One line
  /// each.
  [[nodiscard]] const std::vector<std::string>& warnings() const noexcept;
  /// Bytes of tensors that write() copies.
  [[nodiscard]] std::uint64_t bytes() const noexcept;

  /// Brings the values into the state, in place; nodes that cannot take them are replaced.
  void write();

 private:
  explicit Assembly(std::unique_ptr<detail::AssemblyPlan> plan);
  std::unique_ptr<detail::AssemblyPlan> plan_;
};

}  // namespace meshstage
