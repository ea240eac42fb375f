#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "tools/run/hosts.hpp"

namespace meshstage::tools::run {

using Environment = std::map<std::string, std::string>;

/// What the variables of a start depend on, besides the rank.
struct Launch {
  Place place;
  std::string job;         ///< MESHSTAGE_JOB
  std::string name;        ///< MESHSTAGE_LAUNCH, unless the user set it; empty: none.
  std::string store;       ///< MESHSTAGE_STORE; empty: the program's default.
  std::string supervisor;  ///< MESHSTAGE_SUPERVISOR: the socket on which ranks report.
  std::uint16_t master_port = 0;
  int processors = 1;  ///< That this process may use.
};

/// The variables of the rank with this number on its host: ours, and those that programs made for
/// torchrun read. `inherited` is this process's environment; what the user has set of
/// OMP_NUM_THREADS stays, every variable of a launcher above this one goes, for it numbers the
/// launchers and not the ranks.
[[nodiscard]] Environment rank_environment(const Launch& launch, int local_rank,
                                           Environment inherited);

/// This process's variables.
[[nodiscard]] Environment own_environment();

}  // namespace meshstage::tools::run
