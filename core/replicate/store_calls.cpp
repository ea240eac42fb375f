#include <meshstage/core/replicate/store_calls.hpp>

#include <new>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/generation/number.hpp>

namespace meshstage::replicate {
namespace {

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

}  // namespace

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

StoreCall looking_for_newer(std::string job, Generation generation, protocol::AskStore action) {
  return [of = std::move(job), known = std::move(generation), action](Store& store, Deadline by) {
    return superseded(store, of, known, action, by);
  };
}

StoreCall reading_cause(const std::string& job, std::uint64_t generation) {
  return
      [key = cause_key(job, generation)](Store& store, Deadline by) { return store.get(key, by); };
}

StoreCall noting_cause(const std::string& job, std::uint64_t generation, const DeathCause& cause) {
  return [key = cause_key(job, generation), text = encode_cause(cause)](
             Store& store, Deadline by) -> std::optional<std::string> {
    return store.compare_and_create(key, text, by);
  };
}

StoreCall reading_notes(std::string job, std::shared_ptr<JobNotes> notes) {
  return [of = std::move(job), into = std::move(notes)](Store& store,
                                                        Deadline by) -> std::optional<std::string> {
    *into = read_notes(store, of, by);
    return std::nullopt;
  };
}

StoreCall noting_finish(std::string job, std::uint64_t generation) {
  return
      [of = std::move(job), generation](Store& store, Deadline by) -> std::optional<std::string> {
        note_finished(store, of, generation, by);
        return std::nullopt;
      };
}

}  // namespace meshstage::replicate
