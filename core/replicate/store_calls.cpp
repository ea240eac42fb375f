#include <meshstage/core/replicate/store_calls.hpp>

#include <new>

#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/replicate/job_notes.hpp>

namespace meshstage::replicate {

StoreAnswer answer_of(Store& store, const StoreCall& call, Deadline deadline, Loop& loop) {
  StoreAnswer answer;
  try {
    answer.value = call(store, deadline);
  } catch (const std::bad_alloc&) {  // says nothing of the Store: the next generation asks anew
    answer.error = std::current_exception();
    loop.fail(answer.error);
  } catch (...) {  // this thread's boundary for a Store, which may be the user's
    answer.error = std::current_exception();
  }
  return answer;
}

std::optional<std::string> superseded(Store& store, const std::string& job,
                                      const Generation& generation,
                                      const protocol::AskStore& action, Deadline deadline) {
  if (action.note) note_complete(store, job, action.id, deadline);
  const auto newer = look_for_newer(store, job, generation, deadline);
  if (!newer) return std::nullopt;
  const std::string number = generation_text(newer->number);
  if (newer->owner.empty()) return number + " was claimed: this one is over";
  throw Fenced(newer->owner + " owns the job since " + number + "; this process must end");
}

}  // namespace meshstage::replicate
