#pragma once
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/job_notes.hpp>
#include <meshstage/core/replicate/loop.hpp>

/// The engine's calls to the Store.
/// Threads: ms-store. The loop makes the functions that StoreWorker posts to it.
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
/// complete, if the action says so. Answers in words what superseded `generation`; with nothing if
/// it is the newest. Throws Fenced if another process owns the job now, and what the Store throws.
[[nodiscard]] StoreCall looking_for_newer(std::string job, Generation generation,
                                          protocol::AskStore action);
/// Answers with the encoded cause of that generation's end; with nothing if none is noted.
[[nodiscard]] StoreCall reading_cause(const std::string& job, std::uint64_t generation);
/// Notes that cause unless there is one already.
[[nodiscard]] StoreCall noting_cause(const std::string& job, std::uint64_t generation,
                                     const DeathCause& cause);
/// read_notes() into `notes`. The loop must not read `notes` before the answer.
[[nodiscard]] StoreCall reading_notes(std::string job, std::shared_ptr<JobNotes> notes);
/// note_finished().
[[nodiscard]] StoreCall noting_finish(std::string job, std::uint64_t generation);

}  // namespace meshstage::replicate
