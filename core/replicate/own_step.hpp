#pragma once
#include <exception>
#include <memory>
#include <string>

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

  /// The trainer stages a step. Feeds StageRequested.
  void request(const std::shared_ptr<StageJob>& job);
  /// The protocol takes it: it gets a slot as soon as that is free, and is copied.
  void write(const protocol::WriteOwn& action);
  /// A holder is ready for it.
  void send(const protocol::SendImage& action);
  /// The protocol knows its outcome.
  void announce(const protocol::Announce& action);
  /// To tell the trainer of that step what becomes of it on disk.
  [[nodiscard]] Promise<DiskOutcome> persisted(ImageId id) const;
  /// The protocol does not take it. False if there is no request to refuse.
  [[nodiscard]] bool refuse(const protocol::Refuse& action);

  /// The generation broke: the trainer is told. Copying goes on.
  void lose(const std::exception_ptr& loss);
  /// The generation is being left: nothing waits for a slot any more.
  void let_go(const std::exception_ptr& loss);
  /// The generation was left: forgets the step.
  void leave(const std::exception_ptr& loss);

 private:
  void copy(const std::shared_ptr<StageJob>& job, const ImageIdentity& identity);
  /// It will not be written: staged() throws the error, or returns because nothing was read.
  void fail(StageJob& job, const std::exception_ptr& error);
  void leave_out(StageJob& job, const std::string& why);
  void end_unwritten(StageJob& job, const std::exception_ptr& error, const std::string& why);
  void settle(const StageJob& job);

  Engine& engine_;
  Slots& slots_;
  Copier& copier_;
  Streams& streams_;
  std::shared_ptr<StageJob> pending_;  ///< Requested; the protocol has not answered yet.
  std::shared_ptr<StageJob> job_;
  bool left_ = false;  ///< Between let_go() and leave().
};

}  // namespace meshstage::replicate
