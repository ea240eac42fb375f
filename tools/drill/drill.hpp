#pragma once
#include <iosfwd>
#include <optional>
#include <string>

#include "tools/drill/arguments.hpp"
#include "tools/drill/job.hpp"

namespace meshstage::tools::drill {

/// What came of it.
struct Verdict {
  JobResult result;
  std::optional<std::string> difference;  ///< The first, with its rank; nothing: identical.
  /// Identical, everything that was asked for has happened, nothing grew by it, and the job did
  /// nothing wrong meanwhile.
  [[nodiscard]] bool good() const {
    return !difference && result.never_happened.empty() && result.grown.empty() &&
           result.wrong.empty();
  }
};

/// Trains twice, first undisturbed, then with the faults, and compares the final states of all
/// ranks. Where a restart changes the number of ranks, the undisturbed run comes last: each number
/// of ranks trains the steps that it trained with the faults, from states that are handed over in
/// files. Leaves nothing behind: no process, no shared memory, no
/// file (but the logs of a failed run in a directory that the user named). Throws JobFailed,
/// Interrupted, Error.
Verdict run_drill(const Arguments& arguments, Display& display);

/// The object that `--json` prints.
std::string to_json_text(const Arguments& arguments, const Verdict& verdict);

}  // namespace meshstage::tools::drill
