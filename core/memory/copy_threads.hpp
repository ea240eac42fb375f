#pragma once
#include <meshstage/core/os/available_processors.hpp>

namespace meshstage {

/// The other work of the processors while a copy runs.
enum class Beside : std::uint8_t {
  kNothing,  ///< The trainer waits for the copy.
  kTrainer,  ///< The trainer computes on the same processors.
};

/// More threads do not copy faster: on 16 cores with one memory controller, 8 threads copied 53
/// GB/s and 16 only 41 (1: 11, 2: 22, 4: 35).
inline constexpr unsigned kMostCopyThreads = 8;

/// The default number of threads for a rank's copy. Each of the `local_ranks` ranks on this host
/// takes its share of the processors, but at most kMostCopyThreads; beside a trainer it takes at
/// most half of its share. At least 1.
[[nodiscard]] MESHSTAGE_API unsigned default_copy_threads(const AvailableProcessors& processors,
                                                          Beside beside, unsigned local_ranks = 1);

}  // namespace meshstage
