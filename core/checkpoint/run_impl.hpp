#pragma once
#include <chrono>
#include <cstdint>
#include <optional>

#include <meshstage/core/checkpoint/checkpointer.hpp>

namespace meshstage::detail {

/// Checkpointer::run(). `trained` is the step at which an earlier run() of this generation ended,
/// if there was one; `patience` bounds the wait for the outcome of a step.
std::uint64_t run(Checkpointer& ckpt, std::optional<std::uint64_t>& trained, Dict& state,
                  std::uint64_t steps, const RunBody& body, const RunOptions& options,
                  std::chrono::milliseconds patience);

}  // namespace meshstage::detail
