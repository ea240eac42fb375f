#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>

namespace meshstage::detail {

/// The parts of its Checkpointer that a run() needs beyond the public calls.
struct RunSeams {
  Checkpointer& ckpt;
  /// The step at which an earlier run() of this generation ended, if there was one.
  std::optional<std::uint64_t>& trained;
  /// What Checkpointer::device_group() returns in the present generation; null without
  /// CheckpointerOptions::device_group. Another one after each rejoin().
  const std::shared_ptr<ProcessGroup>& device_group;
  /// CheckpointerOptions::streams.
  std::span<const TrainerStream> streams;
  /// True: stage() waits for the step before (WhenBusy::kWait).
  bool waits_when_busy;
  /// Ends the generation on every rank, names no rank as dead, and throws RejoinNeeded with `why`.
  std::function<void(const std::string& why)> end_generation;
};

/// Checkpointer::run().
std::uint64_t run(RunSeams seams, Dict& state, std::uint64_t steps, const RunBody& body,
                  const RunOptions& options);

}  // namespace meshstage::detail
