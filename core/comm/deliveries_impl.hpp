#pragma once
#include <cstddef>
#include <deque>
#include <exception>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/control_links.hpp>

namespace meshstage {

/// The messages and losses that links have yet to deliver to their handlers. Keeps them in order
/// while there are no handlers, and knows when a handler runs. All implementations of ControlLinks
/// use it. Threads: any; deliver_one() runs on the links' thread.
class Deliveries {
 public:
  void message(int peer, std::vector<std::byte> bytes) {
    push({peer, false, LostReason::kClosed, {}, std::move(bytes)});
  }
  void lost(int peer, LostReason reason, std::string detail) {
    push({peer, true, reason, std::move(detail), {}});
  }

  /// Gives the first entry to its handler. False if there is no entry or no handler. An exception
  /// of the handler is passed on; the entry counts as delivered.
  bool deliver_one() {
    MutexLock lock(mutex_);
    if (!deliverable()) return false;
    Entry entry = std::move(queue_.front());
    queue_.pop_front();
    if (kept_from_.contains(entry.peer)) {
      kept_.push_back(std::move(entry));
      return true;
    }
    const auto handlers = handlers_;
    running_on_ = std::this_thread::get_id();
    lock.unlock();
    bool keep = false;
    std::exception_ptr thrown;
    try {
      keep = !take(*handlers, entry);
    } catch (...) {  // passed on below, once no handler runs any more
      thrown = std::current_exception();
    }
    lock.lock();
    running_on_ = {};
    if (keep) {
      kept_from_.insert(entry.peer);
      kept_.push_back(std::move(entry));
      if (handlers != handlers_) give_back_kept();  // exchanged meanwhile
    }
    changed_.notify_all();
    lock.unlock();
    if (thrown) std::rethrow_exception(thrown);
    return true;
  }
  /// Waits until an entry can be delivered; false after stop().
  bool wait() {
    MutexLock lock(mutex_);
    changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return stopped_ || deliverable(); });
    return !stopped_;
  }
  /// ControlHandlers::alive.
  [[nodiscard]] bool alive() {
    const MutexLock lock(mutex_);
    return !handlers_ || !handlers_->alive || handlers_->alive();
  }
  void set_handlers(ControlHandlers handlers) {
    MutexLock lock(mutex_);
    const bool any = handlers.on_message || handlers.on_lost;
    handlers_ = any ? std::make_shared<const ControlHandlers>(std::move(handlers)) : nullptr;
    give_back_kept();
    changed_.notify_all();
    changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) {
      return running_on_ == std::thread::id() || running_on_ == std::this_thread::get_id();
    });
  }
  /// True holds every entry back, false goes on.
  void pause(bool paused) {
    const MutexLock lock(mutex_);
    paused_ = paused;
    changed_.notify_all();
  }
  /// Ends the deliveries; a handler that runs goes on to its end.
  void stop() {
    const MutexLock lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

 private:
  struct Entry {
    int peer;
    bool lost;
    LostReason reason;
    std::string detail;
    std::vector<std::byte> bytes;
  };
  /// False if the handlers turn it down.
  static bool take(const ControlHandlers& handlers, const Entry& entry) {
    if (entry.lost) {
      if (handlers.on_lost) handlers.on_lost(entry.peer, entry.reason, entry.detail);
      return true;
    }
    if (handlers.takes && !handlers.takes(entry.peer, entry.bytes)) return false;
    if (handlers.on_message) handlers.on_message(entry.peer, entry.bytes);
    return true;
  }
  /// Entries that the old handlers turned down go to the next handlers.
  void give_back_kept() MESHSTAGE_REQUIRES(mutex_) {
    queue_.insert(queue_.begin(), std::make_move_iterator(kept_.begin()),
                  std::make_move_iterator(kept_.end()));
    kept_.clear();
    kept_from_.clear();
  }
  void push(Entry entry) {
    const MutexLock lock(mutex_);
    queue_.push_back(std::move(entry));
    changed_.notify_all();
  }
  [[nodiscard]] bool deliverable() const MESHSTAGE_REQUIRES(mutex_) {
    return !stopped_ && !paused_ && handlers_ != nullptr && !queue_.empty();
  }

  Mutex mutex_;
  CondVar changed_;
  std::deque<Entry> queue_ MESHSTAGE_GUARDED_BY(mutex_);
  /// Entries that the present handlers turned down.
  std::deque<Entry> kept_ MESHSTAGE_GUARDED_BY(mutex_);
  std::set<int> kept_from_ MESHSTAGE_GUARDED_BY(mutex_);
  std::shared_ptr<const ControlHandlers> handlers_ MESHSTAGE_GUARDED_BY(mutex_);
  std::thread::id running_on_ MESHSTAGE_GUARDED_BY(mutex_);
  bool paused_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool stopped_ MESHSTAGE_GUARDED_BY(mutex_) = false;
};

}  // namespace meshstage
