#pragma once
#include <meshstage/core/os/available_processors.hpp>

namespace meshstage {

/// What the processors do while a copy runs.
enum class Beside : std::uint8_t {
  kNothing,  ///< The trainer waits for the copy.
  kTrainer,  ///< It computes on the same processors.
};

/// More threads do not copy faster: of 16 cores with one memory controller, 8 copied 53 GB/s and 16
/// only 41 (1: 11, 2: 22, 4: 35).
inline constexpr unsigned kMostCopyThreads = 8;

/// How many threads a rank's copy takes unless it is told: each of `local_ranks` ranks on this host
/// its share of the processors, at most kMostCopyThreads, and beside a trainer at most half of that
/// share. At least 1.
[[nodiscard]] MESHSTAGE_API unsigned default_copy_threads(const AvailableProcessors& processors,
                                                          Beside beside, unsigned local_ranks = 1);

}  // namespace meshstage
