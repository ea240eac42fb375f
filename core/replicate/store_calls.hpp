#pragma once
#include <exception>
#include <functional>
#include <optional>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/loop.hpp>

/// The calls of the Store that are more than one function of job_notes. StoreWorker posts them to
/// its thread.
/// Threads: ms-store.
namespace meshstage::replicate {

/// The result of a call: a value (nothing if the key has none), or an error.
struct StoreAnswer {
  std::optional<std::string> value;
  std::exception_ptr error;
};
using StoreCall = std::function<std::optional<std::string>(Store&, Deadline)>;

/// Makes the call. If there is no memory, that ends the generation, too.
[[nodiscard]] StoreAnswer answer_of(Store& store, const StoreCall& call, Deadline deadline,
                                    Loop& loop);

/// The question of AskStore: whether there is a newer generation. Notes before it that a step is
/// complete, if the action says so. Returns in words what superseded `generation`; nothing if it is
/// the newest. Throws Fenced if another process owns the job now, and what the Store throws.
[[nodiscard]] std::optional<std::string> superseded(Store& store, const std::string& job,
                                                    const Generation& generation,
                                                    const protocol::AskStore& action,
                                                    Deadline deadline);

}  // namespace meshstage::replicate
