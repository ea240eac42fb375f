#pragma once
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/core/replicate/options.hpp>

namespace meshstage::replicate {

/// How many threads work on one of this rank's images, to copy or to prove it: `copy_threads` of
/// the options, or this rank's share of the processors (default_copy_threads()).
/// Threads: any.
[[nodiscard]] inline unsigned hands_for(const CheckpointerOptions& options, Beside beside) {
  if (options.copy_threads != 0) return options.copy_threads;
  return default_copy_threads(available_processors(), beside,
                              static_cast<unsigned>(options.environment->local_world_size));
}

}  // namespace meshstage::replicate
