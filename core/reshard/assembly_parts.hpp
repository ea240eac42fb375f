#pragma once
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include <meshstage/core/reshard/assembly.hpp>
#include <meshstage/core/reshard/step_on_disk.hpp>

namespace meshstage::detail {

/// Assembly::plan() out of files in two parts, for a caller whose other ranks wait differently for
/// a rank that reads than for one that compares.
struct MESHSTAGE_API AssemblyParts {
  /// Reads all that is to be read before write().
  [[nodiscard]] static Assembly read(StepStates& old, Value state, int rank, int world_size,
                                     const ReshardOptions& options);
  /// Calls `needs` with each part of an old tensor that read() would read. Reads structure and
  /// plain values alone, and throws what is wrong with these.
  static void ask(const StepStates& old, Value state, int rank, int world_size,
                  const ReshardOptions& options, const std::function<void(const Tensor&)>& needs);
  /// The rest: throws StructureMismatch where tensors that share memory had other bytes.
  static void check(const Assembly& assembly);
  /// For each path that some ranks of the old job have and others have not: 1 if this rank takes
  /// it, else 0. The order is the same at all ranks that read the same step.
  [[nodiscard]] static std::vector<std::byte> taken(const Assembly& assembly);
  /// Throws StructureMismatch naming such a path that no rank takes. `told`: each rank's taken().
  static void require_all_taken(const Assembly& assembly,
                                std::span<const std::vector<std::byte>> told);
};

}  // namespace meshstage::detail
