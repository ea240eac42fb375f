#pragma once
#include <cstddef>
#include <memory>
#include <utility>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>

namespace meshstage::replicate {

/// Counts tasks that belong together, for example those of one generation. Each task, and each task
/// that it starts, keeps a ticket; close() waits until no ticket is left.
/// Threads: any. The scope must outlive its tickets.
class TaskScope {
 public:
  /// Its destructor ends the task.
  class Task {
   public:
    Task() = default;
    Task(const Task&) = delete;
    Task& operator=(const Task&) = delete;
    ~Task() {
      if (scope_ != nullptr) scope_->end();
    }

   private:
    friend class TaskScope;
    TaskScope* scope_ = nullptr;
  };
  /// Copies count as one. Null: the scope was closed.
  using Ticket = std::shared_ptr<Task>;

  void open() {
    const MutexLock lock(mutex_);
    open_ = true;
  }
  [[nodiscard]] Ticket enter() {
    auto ticket = std::make_shared<Task>();  // may throw, so before anything is counted or locked
    const MutexLock lock(mutex_);
    if (!open_) return nullptr;
    ticket->scope_ = this;
    ++tasks_;
    return ticket;
  }
  /// Gives no more tickets, and waits until all tickets are gone. False if some are left at the
  /// deadline.
  bool close(Deadline deadline = Deadline::never()) {
    MutexLock lock(mutex_);
    open_ = false;
    return changed_.wait_until(lock, deadline,
                               [this]() MESHSTAGE_REQUIRES(mutex_) { return tasks_ == 0; });
  }

 private:
  void end() {
    const MutexLock lock(mutex_);
    if (--tasks_ == 0) changed_.notify_all();
  }
  Mutex mutex_;
  CondVar changed_;
  std::size_t tasks_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  bool open_ MESHSTAGE_GUARDED_BY(mutex_) = true;
};

}  // namespace meshstage::replicate
