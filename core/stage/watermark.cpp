#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/watermark.hpp>

namespace meshstage {

void Watermark::advance(std::uint64_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  if (bytes <= bytes_.load(std::memory_order_relaxed)) return;
  bytes_.store(bytes, std::memory_order_release);
  changed_.notify_all();
}

std::uint64_t Watermark::wait(std::uint64_t bytes, Deadline deadline) {
  const auto now = this->bytes();
  if (now >= bytes) return now;
  std::unique_lock lock(mutex_);
  const auto done = [&] {
    return bytes_.load(std::memory_order_acquire) >= bytes || cause_ != nullptr;
  };
  if (deadline.is_never()) {
    changed_.wait(lock, done);
  } else if (!changed_.wait_until(lock, deadline.time(), done)) {
    throw Timeout("only " + std::to_string(bytes_.load()) + " of " + std::to_string(bytes) +
                  " bytes of the image were staged by the deadline");
  }
  const auto reached = bytes_.load(std::memory_order_acquire);
  if (reached < bytes) std::rethrow_exception(cause_);
  return reached;
}

void Watermark::fail(std::exception_ptr cause) noexcept {
  const std::lock_guard lock(mutex_);
  if (cause_ != nullptr) return;
  cause_ = std::move(cause);
  failed_.store(true, std::memory_order_release);
  changed_.notify_all();
}

bool Watermark::wait_failed(Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto failed = [this] { return cause_ != nullptr; };
  if (!deadline.is_never()) return changed_.wait_until(lock, deadline.time(), failed);
  changed_.wait(lock, failed);
  return true;
}

void Watermark::throw_if_failed() {
  if (!failed()) return;
  const std::lock_guard lock(mutex_);
  std::rethrow_exception(cause_);
}

void Watermark::reset() noexcept {
  const std::lock_guard lock(mutex_);
  bytes_.store(0, std::memory_order_release);
  failed_.store(false, std::memory_order_release);
  cause_ = nullptr;
}

}  // namespace meshstage
