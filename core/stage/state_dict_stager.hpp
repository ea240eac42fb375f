#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/memory/resource.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

struct StagerOptions {
  /// Where staged bytes live; must outlive the stager and every Value it returned. Null for
  /// host_memory(). A CappedMemory makes a budget.
  MemoryResource* memory = nullptr;
};

/// Copies state dicts into host memory of its own: the in-memory stager, without a vault.
///
///     ms::StateDictStager stager;
///     ms::Value staged = stager.stage(state);    // state may change now; staged does not follow
///
/// Each distinct storage is copied whole, once; staged tensors share where the sources did, and
/// have their shapes, strides and offsets. The memory is used again by the next stage() while the
/// structure stays: then the tensors of what was returned before show the new values (clone() what
/// must last). After a change of structure, what stayed keeps its place if the memory is large
/// enough; otherwise new memory is made, and the old lives as long as a Value returned from it.
/// Threads: calls from several threads take turns.
class MESHSTAGE_API StateDictStager {
 public:
  explicit StateDictStager(StagerOptions options = {});
  StateDictStager(const StateDictStager&) = delete;
  StateDictStager& operator=(const StateDictStager&) = delete;
  ~StateDictStager();

  /// Returns when everything is copied: `state` may change from then on. Containers and Nodes of
  /// the result are new, scalars and strings as in `state`. Throws InvalidArgument (a cycle, a
  /// tensor that is not on the CPU: with its path) and OutOfMemory; the stager stays usable and
  /// what was staged before is as it was.
  [[nodiscard]] Value stage(const Value& state);

  /// Distinct storages that the memory holds now, and their bytes (each once).
  [[nodiscard]] std::size_t cached_storages() const;
  [[nodiscard]] std::uint64_t cached_bytes() const;
  /// How often stage() had to lay out anew since the stager was made.
  [[nodiscard]] std::uint64_t plans() const;
  /// Lets go of the memory; Values keep theirs. The next stage() starts anew.
  void clear();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meshstage
