#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/comm/store.hpp>

namespace meshstage::detail {

/// Answers newcomers that ask in the Store whether the ranks of a generation live. A question is a
/// new text of gen/<n>/asked; the answer is gen/<n>/alive/<rank>, "<answers> <signs>": the process
/// raises the first number at each question, and the second if its trainer did something since the
/// question before.
///
/// Threads: one of its own, which looks for a question every `interval`. in() from any.
class SignsOfLife {
 public:
  /// `trainer` changes while the trainer does something; null: it always does.
  SignsOfLife(std::shared_ptr<Store> store, std::string job, int rank,
              std::chrono::milliseconds interval, std::function<std::uint64_t()> trainer);
  SignsOfLife(const SignsOfLife&) = delete;
  SignsOfLife& operator=(const SignsOfLife&) = delete;

  /// The generation that this rank is in. `forming`: its trainer waits in form(), a sign by itself.
  void in(std::uint64_t generation, bool forming);

 private:
  void run(const std::stop_token& stop);
  void answer(std::uint64_t generation, bool forming);

  const std::shared_ptr<Store> store_;
  const std::string job_;
  const int rank_;
  const std::chrono::milliseconds interval_;
  const std::function<std::uint64_t()> trainer_;
  Mutex mutex_;
  CondVar changed_;
  std::uint64_t generation_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  bool forming_ MESHSTAGE_GUARDED_BY(mutex_) = true;
  // The thread's own:
  std::string question_;
  std::uint64_t answers_ = 0, signs_ = 0, last_ = 0;
  StoppableThread thread_;  // last: it ends before what it uses
};

}  // namespace meshstage::detail
