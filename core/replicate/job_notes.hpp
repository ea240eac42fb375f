#pragma once
#include <cstdint>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/identity/identity.hpp>

/// The engine's entries in the Store about a whole job, below `<job>/`:
/// - `complete/first`: "`<generation> <step>`", a step that was complete (rule 5)
/// - `finished`: "`<generation>`", in which all ranks called finish() and removed their vaults
/// Threads: any. Errors: what the Store throws, and CorruptData for an entry that no rank has
/// written.
namespace meshstage::replicate {

struct JobNotes {
  /// A step that was complete; kNoImage: none was, or the job has finished since.
  ImageId complete{};
  /// The newest generation in which the job finished; 0: it never did. Images of this and older
  /// generations do not belong to the job any more. If some are in memory, their vault was out of
  /// reach when the ranks removed theirs.
  std::uint64_t finished = 0;
};

[[nodiscard]] JobNotes read_notes(Store& store, const std::string& job, Deadline deadline);
/// Must return before any rank learns that `id` is complete.
void note_complete(Store& store, const std::string& job, ImageId id, Deadline deadline);
/// Call it when every rank removes its vault, not before: a rank that reads the note does not use
/// the images of `generation` any more. Notes nothing if a newer generation was claimed, because
/// that generation may go on from the same images.
void note_finished(Store& store, const std::string& job, std::uint64_t generation,
                   Deadline deadline);

}  // namespace meshstage::replicate
