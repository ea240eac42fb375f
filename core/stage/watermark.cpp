#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/watermark.hpp>

namespace meshstage {

void Watermark::advance(std::uint64_t bytes) noexcept {
  const MutexLock lock(mutex_);
  if (bytes <= bytes_.load(std::memory_order_relaxed)) return;
  bytes_.store(bytes, std::memory_order_release);
  changed_.notify_all();
}

std::uint64_t Watermark::wait(std::uint64_t bytes, Deadline deadline) {
  const auto now = this->bytes();
  if (now >= bytes) return now;
  MutexLock lock(mutex_);
  const auto done = [&]() MESHSTAGE_REQUIRES(mutex_) {
    return bytes_.load(std::memory_order_acquire) >= bytes || cause_ != nullptr;
  };
  if (!changed_.wait_until(lock, deadline, done)) {
    throw Timeout("only " + std::to_string(bytes_.load()) + " of " + std::to_string(bytes) +
                  " bytes of the image were staged by the deadline");
  }
  const auto reached = bytes_.load(std::memory_order_acquire);
  if (reached < bytes) std::rethrow_exception(cause_);
  return reached;
}

void Watermark::fail(std::exception_ptr cause) noexcept {
  const MutexLock lock(mutex_);
  if (cause_ != nullptr) return;
  cause_ = std::move(cause);
  failed_.store(true, std::memory_order_release);
  changed_.notify_all();
}

bool Watermark::wait_failed(Deadline deadline) {
  MutexLock lock(mutex_);
  return changed_.wait_until(lock, deadline,
                             [this]() MESHSTAGE_REQUIRES(mutex_) { return cause_ != nullptr; });
}

void Watermark::throw_if_failed() {
  if (!failed()) return;
  const MutexLock lock(mutex_);
  std::rethrow_exception(cause_);
}

void Watermark::reset() noexcept {
  const MutexLock lock(mutex_);
  bytes_.store(0, std::memory_order_release);
  failed_.store(false, std::memory_order_release);
  cause_ = nullptr;
}

}  // namespace meshstage
