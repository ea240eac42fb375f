#pragma once
#include <cstdint>
#include <exception>
#include <optional>
#include <set>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/protocol/messages.hpp>
#include <meshstage/core/replicate/options.hpp>
#include <meshstage/core/replicate/results.hpp>

namespace meshstage::replicate {

/// A loss that every later call reports.
struct Loss {
  ErrorKind kind = ErrorKind::kPeerLost;
  int rank = -1;
  std::string why;
  [[nodiscard]] std::exception_ptr error() const;
};

/// What recover() waits for.
struct RecoverCommand {
  enum class Kind : std::uint8_t { kNone, kCheck, kRestore, kNothing, kFailed } kind = Kind::kNone;
  int slot = 0;
  ImageId id;
  Source source = Source::kNothing;  ///< kRestore: where the image came from.
  int from_rank = -1;
  protocol::Failure failure;
};

/// Where the trainer's thread and the engine meet: the only mutex between them. It says what the
/// trainer may do now, and wakes the trainer when that changes. No call blocks, except those whose
/// comment says that the trainer waits.
/// Threads: any.
class TrainerGate {
 public:
  /// A generation begins: no loss, nothing recovered.
  void open();
  /// The trainer may do nothing more: every call throws this, until the next open(). The first loss
  /// stays.
  void lose(const Loss& loss);
  /// The same where there is no memory for words.
  void lose_without_memory() noexcept;
  [[nodiscard]] std::optional<Loss> loss() const;
  void throw_if_lost() const;
  /// Everyone finished: the vault is removed.
  void finished();

  /// Throws unless a step may be staged; the trainer waits until the one before has ended, for as
  /// long as `patience`. True: its step is in flight now. False: it is busy, and `when` says that
  /// the step is to be left out.
  [[nodiscard]] bool enter_step(std::uint64_t step, WhenBusy when,
                                std::chrono::milliseconds patience);
  /// The step in flight has its outcome, and its source is read.
  void leave_step();

  /// All ranks have agreed that the next step is the last one, or not any more.
  void agree_end(bool end);
  [[nodiscard]] bool end_agreed() const;

  /// Throws unless this generation may recover now.
  void check_recover() const;
  void command(RecoverCommand command);
  /// The trainer waits for the next command. Throws the loss, and Timeout at the deadline: then
  /// that is the loss, and every later command is ignored.
  [[nodiscard]] RecoverCommand next_command(Deadline deadline, std::chrono::milliseconds length);
  void recovered();
  /// Throws unless recover() has returned in this generation; `what` names the call.
  void check_recovered(const char* what) const;

  /// What finish() waits for: an image that is sent (open() forgets those of the generation
  /// before), a step that is persisted.
  void sending_begins() { change(&TrainerGate::sending_, 1); }
  void sending_ends() { change(&TrainerGate::sending_, -1); }
  void persisting_begins() { change(&TrainerGate::persisting_, 1); }
  void persisting_ends() { change(&TrainerGate::persisting_, -1); }
  /// True if finish() was over before. Else the trainer waits until nothing is in flight. Throws
  /// Timeout, or the loss.
  [[nodiscard]] bool wait_idle(Deadline deadline);
  /// The trainer waits until everyone has finished. Throws as wait_idle().
  void wait_finished(Deadline deadline);

  /// Changes the figures.
  template <class F>
  void count(F&& change) {
    const MutexLock lock(mutex_);
    change(stats_);
  }
  [[nodiscard]] Stats stats() const;

  /// Nothing is borrowed from that rank any more.
  void keep_apart(int rank);
  [[nodiscard]] std::set<int> apart() const;

 private:
  void change(int TrainerGate::* counter, int by);
  void rethrow_loss() const MESHSTAGE_REQUIRES(mutex_);
  template <class Ready>
  void wait(MutexLock& lock, Deadline deadline, const char* what, Ready ready)
      MESHSTAGE_REQUIRES(mutex_);

  mutable Mutex mutex_;
  CondVar changed_;
  std::optional<Loss> loss_ MESHSTAGE_GUARDED_BY(mutex_);
  RecoverCommand command_ MESHSTAGE_GUARDED_BY(mutex_);
  bool gave_up_ MESHSTAGE_GUARDED_BY(mutex_) = false;    ///< recover() ran into its deadline.
  bool in_flight_ MESHSTAGE_GUARDED_BY(mutex_) = false;  ///< A stage() is not settled yet.
  bool recovered_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool finished_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool end_agreed_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  int sending_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  int persisting_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  Stats stats_ MESHSTAGE_GUARDED_BY(mutex_);
  std::set<int> apart_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage::replicate
