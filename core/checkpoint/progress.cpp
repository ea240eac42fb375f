#include <utility>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/checkpoint/progress_impl.hpp>

namespace meshstage::detail {
namespace {

void tell_until(const std::stop_token& stop, std::chrono::milliseconds first,
                const std::function<void(std::chrono::seconds)>& tell) {
  Mutex mutex;
  CondVar never_signalled;
  const auto begun = std::chrono::steady_clock::now();
  MutexLock lock(mutex);
  auto next = begun + first;
  while (true) {
    (void)never_signalled.wait_until(lock, stop, Deadline::at(next), [] { return false; });
    if (stop.stop_requested()) return;
    next += std::chrono::seconds(10);
    tell(std::chrono::floor<std::chrono::seconds>(std::chrono::steady_clock::now() - begun));
  }
}

}  // namespace

Progress::Progress(std::chrono::milliseconds first, std::function<void(std::chrono::seconds)> tell)
    : thread_("ms-progress", [first, tell = std::move(tell)](const std::stop_token& stop) {
        tell_until(stop, first, tell);
      }) {}

}  // namespace meshstage::detail
