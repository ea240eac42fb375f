#include <meshstage/core/replicate/report.hpp>

#include <new>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/generation/number.hpp>

namespace meshstage {

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception of an unknown type";
  }
}

std::optional<std::string> fenced_by(const std::exception_ptr& error) {
  if (error == nullptr) return std::nullopt;
  try {
    std::rethrow_exception(error);
  } catch (const Fenced& e) {
    return e.message();
  } catch (...) {  // the caller has it, and tells it
    return std::nullopt;
  }
}

namespace replicate {

Reporter::Reporter(std::string job, int rank, std::shared_ptr<Log> log, Observer observer,
                   FailureHandler on_failure)
    : job_(std::move(job)),
      rank_(rank),
      log_(std::move(log)),
      observer_(std::move(observer)),
      on_failure_(std::move(on_failure)) {}

void Reporter::write(LogLine::Level level, const std::string& text) noexcept {
  try {
    log_->write({level, "meshstage: job " + job_ + ", " + generation_text(generation_) + ", rank " +
                            std::to_string(rank_) + ": " + text});
  } catch (const std::bad_alloc&) {
    Log::say_no_memory();
  }
}

void Reporter::reach(Point point, ImageId id, int peer, std::uint64_t chunk,
                     std::uint64_t chunks) noexcept {
  if (!observer_ || observer_failed_) return;
  try {
    observer_({.point = point,
               .name = to_string(point),
               .rank = rank_,
               .generation = generation_,
               .id = id,
               .peer = peer,
               .chunk = chunk,
               .chunks = chunks});
  } catch (...) {  // the boundary of a user's callback
    if (observer_failed_.exchange(true)) return;
    const auto error = std::current_exception();
    try {
      throw_error(ErrorKind::kInvalidState, "the observer threw at the point " +
                                                std::string(to_string(point)) + ": " +
                                                text_of(error) + "; it is not called again");
    } catch (...) {
      report_failure(on_failure_, "an observer", std::current_exception());
    }
  }
}

}  // namespace replicate
}  // namespace meshstage
