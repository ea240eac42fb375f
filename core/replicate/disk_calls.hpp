#pragma once
#include <cstddef>
#include <exception>
#include <new>
#include <vector>

#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/persistence.hpp>

/// The work of Persister's thread: writes and removes files.
/// Threads: ms-persist.
namespace meshstage::replicate {

/// The result of write_step().
struct WrittenStep {
  bool good = true;
  double seconds = 0;
};
/// Writes a complete step to disk, from the slots that have it. Warns of each image that cannot be
/// written.
[[nodiscard]] WrittenStep write_step(Engine& engine, const Persistence& files,
                                     const std::vector<SlotKey>& keys, ImageId id);

/// Persistence::prune_older(). Warns if that fails.
void remove_older(Engine& engine, const Persistence& files, ImageId than, std::size_t keep);

/// Calls `post`, which posts to the loop that the slots of a written step are free. If there is no
/// memory for that, the generation ends and `post` is called again: the slots outlive the
/// generation.
template <class Post>
void give_slots_back(Loop& loop, const Post& post) {
  try {
    post();
  } catch (const std::bad_alloc&) {
    loop.fail(std::current_exception());
    post();
  }
}

}  // namespace meshstage::replicate
