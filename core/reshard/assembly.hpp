#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tree/boxes.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

class StepStates;

namespace detail {
struct AssemblyPlan;
struct AssemblyParts;
}  // namespace detail

/// The kind of a value that lies on no mesh: a scalar, or a plain tensor. The kind decides which
/// value the ranks of a job with another world size get.
enum class PlainKind : std::uint8_t {
  kSame,   ///< Every rank has the same bytes. Other bytes are refused.
  kFirst,  ///< Every rank takes the value of the first old rank that has one.
  /// Rank r takes rank r's value, or keeps its own where rank r of the old job had none. A dict of
  /// this kind must have the keys that it had, a list or tuple the length.
  kPerRank,
  kSummed,  ///< Rank 0 takes the sum over all ranks, the other ranks take 0.
};

/// How an Assembly puts a state together.
struct ReshardOptions {
  /// Readers for tensors that lie on meshes: dtensor::register_boxes(), sharded::register_boxes().
  BoxReaders readers = {};
  /// The kind of the plain value at a path ("rng.state", as Path::text()). Null: kSame for all. Of
  /// a container it only tells whether each rank has it for itself; its values have kinds of their
  /// own.
  std::function<PlainKind(const std::string& path)> plain = {};
};

/// One rank's state, put together out of the states of another number of ranks.
///
///     auto assembly = Assembly::plan(old_states, state, rank, world_size, options);  // checks all
///     assembly.write();  // then writes into `state`
///
/// Tensors on meshes are matched by path, dtype and shape of the whole tensor. Meshes, placements
/// and shards may differ, and so may the types: a DTensor takes the boxes of a ShardedTensor or of
/// a plain tensor, and a plain tensor takes the whole of a DTensor. Tensors keep their storages.
/// Threads: one calls, and write() may start helpers; no other thread may read or write `state` or
/// the old states meanwhile.
class MESHSTAGE_API Assembly {
 public:
  /// Compares everything and writes nothing. `old` has the states of the old job by rank, for
  /// example views of files; the Assembly keeps their tensors. `state` is the state of rank `rank`
  /// of `world_size` in the new job.
  ///
  /// Throws StructureMismatch, with the path, for:
  /// - a path that no old rank has, or that every old rank has and `state` lacks;
  /// - another kind, dtype or shape, or an element that no old rank has;
  /// - plain values that differ although their kind is kSame;
  /// - a type that has no reader and differs;
  /// - tensors that share memory in `state` and had other bytes in the old job.
  /// Throws InvalidState for memory that cannot be written, or that no driver knows, and
  /// CorruptData as the readers do.
  [[nodiscard]] static Assembly plan(std::span<const Value> old, Value state, int rank,
                                     int world_size, const ReshardOptions& options);
  /// The same out of files: reads only what this rank needs, and for kSame its share of the copies
  /// to be compared, so that all ranks together compare all. A difference may be thrown by one rank
  /// alone: no rank may write() before every rank has its Assembly. Passes over damaged files, as
  /// StepStates does.
  [[nodiscard]] static Assembly plan(StepStates& old, Value state, int rank, int world_size,
                                     const ReshardOptions& options);
  Assembly(Assembly&&) noexcept;
  Assembly& operator=(Assembly&&) noexcept;
  ~Assembly();

  /// One line for each tensor whose copies along a replicated mesh dimension differed in the old
  /// job. Every rank takes all boxes of such a tensor from the copy that is first by coordinates.
  [[nodiscard]] const std::vector<std::string>& warnings() const noexcept;
  /// Bytes of tensors that write() copies.
  [[nodiscard]] std::uint64_t bytes() const noexcept;

  /// Writes the values into the state, in place. A node that cannot be changed in place is
  /// replaced. Tensors on devices are written behind the work that the trainer has issued on
  /// `streams` before the call (a device that has none there: on its legacy default stream), and
  /// are written when the call returns; that takes up to 64 MiB of host memory. Throws InvalidState
  /// for a stream that is being captured, before it writes anything. A later error of a device is
  /// InvalidState, or Timeout at `deadline`, and says that the tensors are unusable. `hands`: the
  /// most threads that copy into host memory, the caller included; 0: as many as a copy that the
  /// trainer waits for (Beside::kNothing).
  void write(std::span<const TrainerStream> streams = {}, Deadline deadline = Deadline::never(),
             unsigned hands = 0);

 private:
  explicit Assembly(std::unique_ptr<detail::AssemblyPlan> plan);
  friend struct detail::AssemblyParts;
  std::unique_ptr<detail::AssemblyPlan> plan_;
};

}  // namespace meshstage
