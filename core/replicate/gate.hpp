#pragma once
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/protocol/messages.hpp>
#include <meshstage/core/replicate/options.hpp>
#include <meshstage/core/replicate/results.hpp>

namespace meshstage::replicate {

/// The end of a generation, which every later call throws.
struct Loss {
  ErrorKind kind = ErrorKind::kPeerLost;
  int rank = -1;
  std::string why;
  std::string path = {};  ///< kStructureMismatch: the first differing path.
  [[nodiscard]] std::exception_ptr error() const;
};

/// The engine's next order to the trainer's thread in recover().
struct RecoverCommand {
  enum class Kind : std::uint8_t { kNone, kCheck, kRestore, kNothing, kFailed } kind = Kind::kNone;
  int slot = 0;
  ImageId id;
  Source source = Source::kNothing;  ///< kRestore: where the image came from.
  int from_rank = -1;
  protocol::OldStep old;  ///< kNothing, at rank 0.
  /// kNothing, with CheckpointerOptions::any_world: the files of other numbers of ranks that this
  /// rank has proven whole, and the whole images of those that it keeps in memory.
  std::vector<std::shared_ptr<const MappedFile>> old_files;
  /// kFailed; kNothing, if `old` is of this number of ranks: how its images are cut otherwise.
  protocol::Failure failure;
};

/// Called while the trainer waits, each time that another `length` has passed. `times` counts since
/// the step was staged, or since the generation began.
struct Patience {
  std::chrono::milliseconds length;
  std::function<void(std::uint32_t times)> waited;
};

/// The place where the trainer's thread waits for the engine. The gate decides what the trainer may
/// do now, and wakes the trainer when that changes. A call blocks only if its comment says that the
/// trainer waits.
/// Threads: any.
class TrainerGate {
 public:
  /// Begins a generation: no loss, nothing recovered.
  void open();
  /// Lets every call of the trainer throw this loss, until the next open(). The first loss stays.
  void lose(const Loss& loss);
  /// lose() where there is no memory for a message.
  void lose_without_memory() noexcept;
  [[nodiscard]] std::optional<Loss> loss() const;
  [[nodiscard]] bool is_lost() const noexcept;
  void throw_if_lost() const;
  /// Called when every rank finished and the vault is removed.
  void finished();

  /// Throws unless a step may be staged. The trainer waits until the step before has ended, however
  /// long that takes. Returns true: the caller's step is in flight now. Returns false if the step
  /// before has not ended and `when` is kSkip: then the step is left out.
  [[nodiscard]] bool enter_step(WhenBusy when, const Patience& patience);
  /// The step's outcome is known and its copying has ended; outcome() is not ready yet.
  void leave_step();

  /// Says whether all ranks have agreed that the next step is the last one.
  void agree_end(bool end);
  [[nodiscard]] bool end_agreed() const;

  /// Throws unless this generation may recover now.
  void check_recover() const;
  void command(RecoverCommand command);
  /// The trainer waits for the next command, however long that takes. Throws the loss.
  [[nodiscard]] RecoverCommand next_command(const Patience& patience);
  /// The next number for Patience::waited, for a wait that is not the gate's.
  [[nodiscard]] std::uint32_t count_wait();
  void recovered();
  /// Throws unless recover() has returned in this generation; `what` names the call.
  void check_recovered(const char* what) const;

  /// finish() waits until no image is being sent and no step is being persisted. open() forgets the
  /// images that the generation before was sending.
  void sending_begins() { change(&TrainerGate::sending_, 1); }
  void sending_ends() { change(&TrainerGate::sending_, -1); }
  void persisting_begins() { change(&TrainerGate::persisting_, 1); }
  void persisting_ends() { change(&TrainerGate::persisting_, -1); }
  /// Returns true if finish() was over before. Otherwise the trainer waits for the step in flight
  /// and for images that are being sent, however long that takes. Then it waits for the disk, at
  /// most for one patience. Throws InvalidState before recover() has returned, Timeout, or the
  /// loss.
  [[nodiscard]] bool wait_idle(const Patience& patience);
  /// The trainer waits until every rank has finished. Throws Timeout, or the loss.
  void wait_finished(Deadline deadline);

  /// Changes the figures of Stats.
  template <class F>
  void count(F&& change) {
    const MutexLock lock(mutex_);
    change(stats_);
  }
  [[nodiscard]] Stats stats() const;

  /// Lets this rank borrow nothing from `rank` any more.
  void keep_apart(int rank);
  [[nodiscard]] std::set<int> apart() const;

 private:
  void change(int TrainerGate::* counter, int by);
  void rethrow_loss() const MESHSTAGE_REQUIRES(mutex_);
  void require_recovered(const char* what) const MESHSTAGE_REQUIRES(mutex_);
  /// Leaves the mutex for each call of `patience.waited`, by `lock`: the analysis does not know
  /// that it is a lock of mutex_.
  template <class Ready>
  void wait(MutexLock& lock, const Patience& patience, Ready ready)
      MESHSTAGE_REQUIRES(mutex_) MESHSTAGE_NO_THREAD_ANALYSIS;
  template <class Ready>
  void wait(MutexLock& lock, Deadline deadline, const char* what, Ready ready)
      MESHSTAGE_REQUIRES(mutex_);

  mutable Mutex mutex_;
  CondVar changed_;
  std::optional<Loss> loss_ MESHSTAGE_GUARDED_BY(mutex_);
  RecoverCommand command_ MESHSTAGE_GUARDED_BY(mutex_);
  std::uint32_t waited_ MESHSTAGE_GUARDED_BY(mutex_) = 0;  ///< As Patience::waited counts.
  bool ordered_ MESHSTAGE_GUARDED_BY(mutex_) = false;      ///< recover() took its last command.
  bool in_flight_ MESHSTAGE_GUARDED_BY(mutex_) = false;    ///< A staged step has not ended yet.
  bool recovered_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool finished_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool end_agreed_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  int sending_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  int persisting_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  Stats stats_ MESHSTAGE_GUARDED_BY(mutex_);
  std::set<int> apart_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage::replicate
