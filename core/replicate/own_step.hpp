#pragma once
#include <exception>
#include <memory>
#include <optional>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/copier.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/slots.hpp>
#include <meshstage/core/replicate/stage_job.hpp>
#include <meshstage/core/replicate/streams.hpp>

namespace meshstage::replicate {

/// The step that this rank stages: from the trainer's request to its outcome.
/// Threads: the loop's.
class OwnStep {
 public:
  OwnStep(Engine& engine, Slots& slots, Copier& copier, Streams& streams);

  /// Called when the trainer stages a step. Feeds StageRequested.
  void request(const std::shared_ptr<StageJob>& job);
  /// Called when the protocol takes the step. As soon as the slot is free, the step gets it and is
  /// copied.
  void write(const protocol::WriteOwn& action);
  /// Sends the image to a holder that has accepted it.
  void send(const protocol::SendImage& action);
  /// Called when the protocol knows the step's outcome.
  void announce(const protocol::Announce& action);
  /// Called when a trainer waits for the step. Feeds CopyStuck if nothing of it has been copied for
  /// a deadline.
  void check_copy(const protocol::CheckCopy& action);
  /// The promise behind that step's Staging::persisted().
  [[nodiscard]] Promise<DiskOutcome> persisted(ImageId id) const;
  /// Called when the protocol refuses an event. If that is the trainer's request, stage() throws.
  /// Every other event only gives a line of the log.
  void refuse(const protocol::Refuse& action);

  /// Called when the generation broke: the step's Staging throws the loss. Copying goes on.
  void lose(const std::exception_ptr& loss);
  /// Called when the generation is being left: the step does not wait for a slot any more.
  void let_go(const std::exception_ptr& loss);
  /// Called when the generation was left: forgets the step.
  void leave(const std::exception_ptr& loss);

 private:
  void copy(const std::shared_ptr<StageJob>& job, const ImageIdentity& identity);
  void refuse_request(const std::string& why);
  /// Ends a step that will not be written: staged() throws the error, or returns because nothing
  /// was read.
  void fail(StageJob& job, const std::exception_ptr& error);
  void leave_out(StageJob& job, const std::string& why);
  void end_unwritten(StageJob& job, const std::exception_ptr& error, const std::string& why);
  void settle(StageJob& job);

  Engine& engine_;
  Slots& slots_;
  Copier& copier_;
  Streams& streams_;
  std::shared_ptr<StageJob> pending_;  ///< Requested, and not yet answered by the protocol.
  std::shared_ptr<StageJob> job_;
  std::uint64_t copied_ = 0;            ///< Bytes of job_'s image at the last check_copy().
  std::optional<Deadline> copy_until_;  ///< More of them must be copied by then.
  bool left_ = false;                   ///< Between let_go() and leave().
};

}  // namespace meshstage::replicate
