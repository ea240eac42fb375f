#include <meshstage/core/memory/copy_threads.hpp>

#include <algorithm>

namespace meshstage {

unsigned default_copy_threads(const AvailableProcessors& processors, Beside beside,
                              unsigned local_ranks) {
  unsigned share = processors.count() / std::max(1U, local_ranks);
  if (beside == Beside::kTrainer) share /= 2;
  return std::clamp(share, 1U, kMostCopyThreads);
}

}  // namespace meshstage
