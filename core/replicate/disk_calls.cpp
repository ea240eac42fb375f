#include <meshstage/core/replicate/disk_calls.hpp>

#include <chrono>
#include <string>

#include <meshstage/core/replicate/stage_job.hpp>

namespace meshstage::replicate {
namespace {

bool write(Engine& engine, const Persistence& files, SlotKey key, ImageId id) {
  try {
    const ReadLease lease = engine.vault.read(key);
    // A file must be complete by itself, so a replica that borrows is not written.
    if (key.owner_rank != engine.rank && lease.info().borrowed_bytes != 0) return true;
    // Older files are removed when all ranks have this one, so publish() proves each byte that it
    // writes.
    files.publish(lease.info(), lease.image());
    return true;
  } catch (...) {  // this thread's boundary: the step stays complete in memory
    engine.report.warn(
        "step " + std::to_string(id.step) +
        " is complete in memory but not on disk: " + text_of(std::current_exception()));
    return false;
  }
}

}  // namespace

WrittenStep write_step(Engine& engine, const Persistence& files, const std::vector<SlotKey>& keys,
                       ImageId id) {
  const auto begun = std::chrono::steady_clock::now();
  WrittenStep result;
  for (const SlotKey key : keys) {
    if (!write(engine, files, key, id)) result.good = false;
  }
  result.seconds = seconds_since(begun);
  return result;
}

void remove_older(Engine& engine, const Persistence& files, ImageId than, std::size_t keep) {
  try {
    files.prune_older(than, keep);
  } catch (...) {  // they are in the way of nothing
    engine.report.warn("cannot remove older images: " + text_of(std::current_exception()));
  }
}

}  // namespace meshstage::replicate
