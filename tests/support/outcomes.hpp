// What a rank's thread expects of a staged step: an error of the thread says what and where.
#pragma once
#include <source_location>
#include <stdexcept>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>

namespace meshstage::test {

/// Waits until the step has an outcome. Throws, with step and line, unless it is complete.
inline void require_complete(Staging& staging, Deadline deadline = Deadline::never(),
                             std::source_location where = std::source_location::current()) {
  const Outcome outcome = staging.outcome().get(deadline);
  if (outcome == Outcome::kComplete) return;
  throw std::logic_error("step " + std::to_string(staging.step()) + " is " +
                         std::string(to_string(outcome)) + ", not complete, at " +
                         where.file_name() + ":" + std::to_string(where.line()));
}

}  // namespace meshstage::test
