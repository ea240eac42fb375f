#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>

namespace meshstage::detail {

/// What a run() needs of its Checkpointer beyond the public calls.
struct RunSeams {
  Checkpointer& ckpt;
  /// The step at which an earlier run() of this generation ended, if there was one.
  std::optional<std::uint64_t>& trained;
  /// Bounds the wait for the outcome of a step.
  std::chrono::milliseconds patience;
  /// stage() waits for the step before (WhenBusy::kWait).
  bool waits_when_busy;
  /// Ends the generation on every rank, by no rank's death, and throws so.
  std::function<void(const std::string& why)> end_generation;
};

/// Checkpointer::run().
std::uint64_t run(RunSeams seams, Dict& state, std::uint64_t steps, const RunBody& body,
                  const RunOptions& options);

}  // namespace meshstage::detail
