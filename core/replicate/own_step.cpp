#include <meshstage/core/replicate/own_step.hpp>

#include <string>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {

OwnStep::OwnStep(Engine& engine, Slots& slots, Copier& copier, Streams& streams)
    : engine_(engine), slots_(slots), copier_(copier), streams_(streams) {}

void OwnStep::request(const std::shared_ptr<StageJob>& job) {
  pending_ = job;
  engine_.feed(protocol::StageRequested{job->step, job->sizes});
  if (pending_ == job) pending_.reset();  // no action answered: the generation is over
}

void OwnStep::write(const protocol::WriteOwn& action) {
  const auto job = std::exchange(pending_, nullptr);
  job->id = action.id;
  job->slot = action.slot;
  job_ = job;
  copy_until_.reset();
  job->accepted.set_value();
  const ImageIdentity identity = engine_.identity(engine_.rank, action.id, action.base);
  slots_.when_free([this, job, identity]() -> bool {
    const SlotKey key{engine_.rank, job->slot};
    if (slots_.in_use(key)) {  // an older image there is still being sent or persisted
      const auto stuck = slots_.stuck(key);
      if (!stuck) return false;
      leave_out(*job, *stuck);
      return true;
    }
    slots_.begin_write({key, identity, job->sizes.image_bytes},
                       [this, job, identity](WriteLease& lease, const std::exception_ptr& error) {
                         if (error) return fail(*job, error);
                         if (left_) return;  // leave() gives the trainer its error
                         job->lease = std::move(lease);
                         copy(job, identity);
                       });
    return true;
  });
}

void OwnStep::copy(const std::shared_ptr<StageJob>& job, const ImageIdentity& identity) {
  job->image = job->lease.image();
  job->blocks = job->plan->block_digests();
  const SlotKey key{engine_.rank, job->slot};
  slots_.hold(key);
  copier_.copy(job, identity, [this, job, key](const protocol::Event& event) {
    job->written = true;
    slots_.release(key);
    engine_.feed(event);
    settle(*job);
  });
  slots_.retry();  // a holder may have accepted before
}

void OwnStep::leave_out(StageJob& job, const std::string& why) {
  job.staged.set_value();  // the copy never reads the tensors
  end_unwritten(job, std::make_exception_ptr(Cancelled(why)), why);
}

void OwnStep::fail(StageJob& job, const std::exception_ptr& error) {
  job.staged.set_error(error);
  end_unwritten(job, error, text_of(error));
}

void OwnStep::end_unwritten(StageJob& job, const std::exception_ptr& error,
                            const std::string& why) {
  job.source = {};  // the trainer's storages, or their snapshot, for which the next step waits
  job.watermark.fail(error);
  job.written = true;
  engine_.feed(protocol::OwnFailed{job.id, why});
  settle(job);
}

void OwnStep::send(const protocol::SendImage& action) {
  const auto job = job_;
  if (!job || job->id != action.id) return;  // superseded: the receiver hears Failed
  slots_.when_free([this, job, action]() -> bool {
    // The holder may be ready before this step has its slot, because the slot's older image is
    // still being persisted. Until then sending must not hold the slot: the copy would wait for the
    // sending, and the sending for the copy.
    if (job->image.empty() && !job->written) return false;
    const SlotKey key{engine_.rank, job->slot};
    slots_.hold(key);
    const auto shape = engine_.shape_of(job->sizes, action.need_manifest, true);
    const std::uint64_t manifest = shape.with_manifest ? 0 : shape.manifest_bytes;
    engine_.gate.count([&](Stats& stats) {
      stats.replica_bytes_sent += shape.image_bytes - shape.borrowed_bytes - manifest;
      stats.replica_bytes_borrowed += shape.borrowed_bytes;
    });
    Outgoing stream = outgoing_step(job);
    stream.to = action.holder;
    stream.start = exchange::stream_start(engine_.rank, action.id, shape, exchange::Content::kImage,
                                          !action.held.empty());
    stream.held = action.held;
    streams_.send(std::move(stream), [this, key] { slots_.release(key); });
    return true;
  });
}

void OwnStep::check_copy(const protocol::CheckCopy& action) {
  // Until the step has its slot, that slot's older image is being sent or written to disk.
  if (!job_ || job_->id != action.id || job_->written || job_->image.empty()) return;
  const std::uint64_t bytes = job_->watermark.bytes();
  if (!copy_until_ || bytes != copied_) {
    copied_ = bytes;
    copy_until_ = Deadline::after(engine_.options.deadline);
  } else if (copy_until_->expired()) {
    engine_.feed(protocol::CopyStuck{
        action.id, "has copied nothing of step " + std::to_string(action.id.step) + " for " +
                       std::to_string(engine_.options.deadline.count()) + " ms"});
  }
}

void OwnStep::announce(const protocol::Announce& action) {
  if (!job_ || job_->id != action.id) {
    // The step failed before it got a slot, or this rank left it out.
    if (pending_ && pending_->step == action.id.step) {
      const auto job = std::exchange(pending_, nullptr);
      job->accepted.set_value();
      job->staged.set_value();  // the copy never reads the tensors
      job->persisted.set_value(DiskOutcome::kNotDue);
      job->decided = job->written = true;
      job->verdict = Outcome::kFailed;
      settle(*job);
    }
    return;
  }
  const auto job = job_;
  if (job->decided) return;
  job->decided = true;
  // kOpen: the generation broke, and lose() gives the Staging its error.
  if (action.verdict == protocol::Verdict::kOpen) return;
  const bool complete = action.verdict == protocol::Verdict::kComplete;
  engine_.gate.count([&](Stats& stats) {
    ++(complete ? stats.complete : stats.failed);
    if (complete) stats.replicate_seconds = seconds_since(job->requested);
  });
  if (!action.orders.persist) job->persisted.set_value(DiskOutcome::kNotDue);
  if (!complete) {
    engine_.report.warn("step " + std::to_string(action.id.step) + " failed: rank " +
                        std::to_string(action.rank) + " voted no: " + action.why);
  }
  job->verdict = complete ? Outcome::kComplete : Outcome::kFailed;
  settle(*job);
}

void OwnStep::refuse(const protocol::Refuse& action) {
  using Reason = protocol::Refuse::Reason;
  switch (action.reason) {
    case Reason::kBusy:
    case Reason::kNotReady:
    case Reason::kNotAbove:
      return refuse_request(action.why);
    case Reason::kMalformed:
      return engine_.report.warn("refused: " + action.why);
    case Reason::kStale:
      return engine_.report.info("ignored: " + action.why);
  }
}

void OwnStep::refuse_request(const std::string& why) {
  if (!pending_) return engine_.report.warn(why);
  const auto job = std::exchange(pending_, nullptr);
  // The generation may have broken after stage() checked it.
  const auto loss = engine_.gate.loss();
  job->accepted.set_error(loss ? loss->error()
                               : std::make_exception_ptr(InvalidState("stage() refused: " + why)));
}

void OwnStep::settle(StageJob& job) {
  // Only once: after the first call the trainer may already have its next step in flight.
  if (!job.decided || !job.written || std::exchange(job.settled, true)) return;
  engine_.gate.leave_step();
  // After leave_step(): a trainer that sees the outcome may stage at once, also with kSkip.
  if (job.verdict) job.outcome.set_value(*job.verdict);
}

void OwnStep::lose(const std::exception_ptr& loss) {
  for (const auto& job : {pending_, job_}) {
    if (!job) continue;
    job->accepted.set_error(loss);
    if (job->verdict) job->outcome.set_value(*job->verdict);
    job->outcome.set_error(loss);  // unless it is known
    job->persisted.set_error(loss);
    if (job->image.empty()) job->staged.set_error(loss);
    job->decided = true;
  }
}

void OwnStep::let_go(const std::exception_ptr& loss) {
  left_ = true;
  // The job may wait for a slot, and a sending thread for the job.
  for (const auto& job : {pending_, job_}) {
    if (job && job->image.empty()) job->watermark.fail(loss);
  }
  if (!job_ || job_->image.empty() || !job_->on_devices) return;
  // The trainer's stream may wait for a peer that is gone, and the copies wait behind the stream.
  engine_.loop.post_at(Deadline::after(engine_.options.deadline / 8), [job = job_] {
    if (job->written) return;
    job->watermark.fail(std::make_exception_ptr(
        InvalidState("the devices had not copied it when the generation was left")));
  });
}

void OwnStep::leave(const std::exception_ptr& loss) {
  left_ = false;
  for (const auto& job : {std::exchange(pending_, nullptr), std::exchange(job_, nullptr)}) {
    if (!job) continue;
    job->accepted.set_error(loss);
    job->staged.set_error(loss);
    if (job->verdict) job->outcome.set_value(*job->verdict);
    job->outcome.set_error(loss);
    job->persisted.set_error(loss);
  }
}

Promise<DiskOutcome> OwnStep::persisted(ImageId id) const {
  return job_ && job_->id == id ? job_->persisted : Promise<DiskOutcome>();
}

}  // namespace meshstage::replicate
