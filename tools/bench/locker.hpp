#pragma once
#include <filesystem>
#include <string>

#include "tools/bench/bench.hpp"

namespace meshstage::tools::bench {

/// What the process of launch and notice runs that page-locks memory. It reports "ready" and
/// "locked" on the descriptor `report`; `directory` is that of the process which started it.
void run_locker(const std::string& what, int report, const std::filesystem::path& directory,
                const Options& options);

}  // namespace meshstage::tools::bench
