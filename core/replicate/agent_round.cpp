// Staging, replicating, agreeing and persisting one step.
#include <algorithm>
#include <utility>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/memory/room.hpp>
#include <meshstage/core/replicate/agent_impl.hpp>

namespace meshstage {
namespace {

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

std::string what_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

}  // namespace

// --- the trainer's thread ------------------------------------------------------------------------

void Agent::Impl::throw_if_lost() const {
  const std::lock_guard lock(mutex_);
  if (loss_) std::rethrow_exception(loss_->error());
}

Stats Agent::Impl::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

Staging Agent::Impl::stage(const Value& state, std::uint64_t step) {
  {
    std::unique_lock lock(mutex_);
    if (finished_) throw InvalidState("stage() after finish()");
    if (loss_) std::rethrow_exception(loss_->error());
    if (!recovered_) throw InvalidState("stage() before recover() in this generation");
    if (in_flight_ && options_.when_busy == WhenBusy::kSkip) {
      ++stats_.skipped;
      lock.unlock();
      post_event(protocol::StageSkipped{step});
      Promise<Outcome> outcome;
      outcome.set_value(Outcome::kSkipped);
      return {Work<void>(), outcome.work(), step};
    }
    const auto free = [this] { return loss_ || !in_flight_; };
    if (!changed_.wait_for(lock, options_.deadline, free)) {
      throw make_error<PeerSilent>("step " + std::to_string(step) +
                                       " cannot be staged: the step before "
                                       "has no outcome after " +
                                       std::to_string(options_.deadline.count()) + " ms",
                                   {}, step);
    }
    if (loss_) std::rethrow_exception(loss_->error());
  }

  auto job = std::make_shared<StageJob>();
  job->step = step;
  const std::set<int> apart = [this] {
    const std::lock_guard lock(mutex_);
    return apart_;
  }();
  auto source = plan_ && plan_apart_ == apart ? plan_->capture(state) : std::nullopt;
  if (!source) {
    plan_ = std::make_shared<const StagingPlan>(
        StagingPlan::compile(state, plan_.get(), plan_options(state, apart)));
    plan_apart_ = apart;
    source = plan_->capture(state);
    if (!source) throw InvalidState("the state dict changed while stage() read it");
  }
  // Not with the plan: who was refused and tries again is refused again.
  const ImageLayout& layout = plan_->layout();
  const std::pair room{layout.image_bytes, layout.image_bytes - layout.shared_bytes};
  if (room != room_for_) {
    check_room_for(room.first, room.second);
    room_for_ = room;
  }
  job->plan = plan_;
  job->source = std::move(*source);
  if (options_.verify_source) job->digests.emplace(state, job->source);
  job->sizes = {layout.image_bytes, layout.data_begin, layout.manifest_digest, layout.shared_bytes,
                static_cast<std::uint32_t>(layout.shared.size() + layout.completes.size())};

  Staging staging(job->staged.work(), job->outcome.work(), step);
  Work<void> accepted = job->accepted.work();
  {
    const std::lock_guard lock(mutex_);
    in_flight_ = true;
    stats_.image_bytes = layout.image_bytes;
  }
  post([this, job] {
    pending_job_ = job;
    feed(protocol::StageRequested{job->step, job->sizes});
    if (pending_job_ == job) {  // answered by neither WriteOwn nor Refuse: failed before it began
      pending_job_.reset();
    }
  });
  try {
    accepted.wait();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    in_flight_ = false;
    throw;
  }
  return staging;
}

void Agent::Impl::check_room_for(std::uint64_t image_bytes, std::uint64_t replica_bytes) {
  // Two own slots and two for each ward; what this vault holds already is not needed again.
  const std::uint64_t all =
      2 * (image_bytes + 4096) + 2 * config_->wards.size() * (replica_bytes + 4096);
  const std::uint64_t held = vault_.bytes_held();
  if (all <= held) return;
  check_room({.what = "the vault (two own images of " + std::to_string(image_bytes) +
                      " bytes each, and two replicas of each ward, taken to be as large as this "
                      "rank's own of " +
                      std::to_string(replica_bytes) + ")",
              .bytes_per_rank = all - held,
              .local_ranks = options_.local_world_size},
             read_room_limits(fs_, options_.vault_directory));
}

void Agent::Impl::finish() {
  std::unique_lock lock(mutex_);
  if (finished_) return;
  if (loss_) std::rethrow_exception(loss_->error());
  const auto deadline = std::chrono::steady_clock::now() + options_.recover_deadline;
  const auto wait = [&](const char* what, auto&& done) {
    if (!changed_.wait_until(lock, deadline, [&] { return loss_ || done(); })) {
      throw Timeout(std::string("finish(): ") + what);
    }
    if (loss_) std::rethrow_exception(loss_->error());
  };
  // What is read from a slot when all have finished would keep its vault.
  wait("the last step has no outcome",
       [this] { return !in_flight_ && persisting_ == 0 && sending_ == 0; });
  lock.unlock();
  post_event(protocol::FinishRequested{});
  lock.lock();
  wait("some rank did not call finish()", [this] { return finished_; });
}

// --- the agent's thread --------------------------------------------------------------------------

void Agent::Impl::perform(const protocol::WriteOwn& action) {
  auto job = std::exchange(pending_job_, nullptr);
  job->id = action.id;
  job->slot = action.slot;
  job_ = job;
  job->accepted.set_value();
  const ImageIdentity who = identity(options_.rank, action.id, action.base);
  when_free([this, job, who]() -> bool {
    const SlotKey key{options_.rank, job->slot};
    if (in_use(key)) return false;  // an older image there is still being sent or persisted
    try {
      job->lease = vault_.begin_write(key, who, job->sizes.image_bytes);
    } catch (const Error&) {
      const auto error = std::current_exception();
      job->staged.set_error(error);
      job->watermark.fail(error);
      job->written = true;
      post_event(protocol::OwnFailed{job->id, what_of(error)});
      return true;
    }
    job->image = job->lease.image();
    hold(key);
    copy_->post([this, job, who] { copy(job, who); });
    return true;
  });
}

void Agent::Impl::copy(const std::shared_ptr<StageJob>& job, const ImageIdentity& who) {
  std::optional<protocol::Event> event;
  try {
    const auto& layout = job->plan->layout();
    const auto& before = job->lease.previous();
    if (!before || before->manifest_digest != layout.manifest_digest) {
      job->plan->write_manifest(job->image);
    }
    job->watermark.advance(layout.data_begin);
    job->plan->copy(job->source, job->image, job->watermark, &pace_);
    if (job->digests) job->digests->check(job->source);
    job->source = {};  // lets go of the trainer's storages
    {
      const std::lock_guard lock(mutex_);
      stats_.stage_seconds = seconds_since(job->requested);
    }
    job->staged.set_value();
    const ImageInfo info = job->plan->seal(who, job->image, job->watermark);
    job->lease.seal(info);
    event = sealed_event(*job, info);
  } catch (const Error&) {
    const auto error = std::current_exception();
    job->source = {};
    job->staged.set_error(error);
    job->watermark.fail(error);
    job->lease.abandon();
    event = protocol::OwnFailed{job->id, what_of(error)};
  }
  post([this, job, e = std::move(*event)] {
    job->written = true;
    release({options_.rank, job->slot});
    feed(e);
    settle(job);
  });
}

void Agent::Impl::settle(const std::shared_ptr<StageJob>& job) {
  if (!job->decided || !job->written) return;
  const std::lock_guard lock(mutex_);
  in_flight_ = false;
  stats_.vault_bytes = vault_.bytes_held();
  changed_.notify_all();
}

void Agent::Impl::perform(const protocol::SendImage& action) {
  const auto job = job_;
  if (!job || job->id != action.id) return;  // superseded: the receiver hears Failed
  when_free([this, job, action]() -> bool {
    // The holder may be ready before the own slot is (its older image is still being persisted).
    // Sending then must not hold the slot, or writing would wait for sending, and that for writing.
    if (job->image.empty() && !job->written) return false;
    const SlotKey key{options_.rank, job->slot};
    hold(key);
    const auto shape = shape_of(job->sizes, action.need_manifest, true);
    note_sent(shape);
    stream_out(
        action.holder, options_.rank, action.id, shape,
        [job] { return std::span<const std::byte>(job->image); },
        [job](std::uint64_t until) {
          // What failed in copying fails the step, not the stream: the receiver takes every piece.
          try {
            job->watermark.wait(until);
          } catch (const Error&) {
            if (job->image.empty()) throw;  // it never got a slot
          }
        },
        [this, key] { release(key); });
    return true;
  });
}

void Agent::Impl::perform(const protocol::AcceptReplica& action) {
  when_free([this, action]() -> bool {
    const SlotKey key{action.ward, action.slot};
    const auto old = incoming_.find(action.ward);
    if (aborted_.contains(action.id)) {  // while it waited
      post_event(protocol::ReplicaFailed{action.ward, action.id, "the step failed"});
      return true;
    }
    if (in_use(key) || (old != incoming_.end() && old->second.streaming)) return false;
    if (old != incoming_.end()) incoming_.erase(old);
    Incoming in;
    in.from = in.owner = action.ward;
    in.slot = action.slot;
    in.id = action.id;
    in.base = action.base;
    in.sizes = action.sizes;
    try {
      in.lease = vault_.begin_write(key, identity(action.ward, action.id, action.base),
                                    action.sizes.image_bytes - action.sizes.shared_bytes);
    } catch (const Error& e) {
      warn("cannot hold rank " + std::to_string(action.ward) + "'s replica of " +
           to_string(action.id) + ": " + e.what());
      post_event(protocol::ReplicaFailed{action.ward, action.id, e.what()});
      return true;
    }
    const auto& before = in.lease.previous();
    in.with_manifest = !before || before->manifest_digest != action.sizes.manifest_digest ||
                       before->manifest_bytes != action.sizes.manifest_bytes;
    if (const auto known = announced_.find(action.ward);
        known != announced_.end() && known->second.first == action.id) {
      in.expected = known->second.second;
    }
    ask_for(in.from, in.owner, in.id, shape_of(in.sizes, in.with_manifest, true));
    post_event(protocol::ReplicaReady{action.ward, action.id, in.with_manifest});
    incoming_.insert_or_assign(action.ward, std::move(in));
    return true;
  });
}

void Agent::Impl::perform(const protocol::ExpectDigest& action) {
  const auto in = incoming_.find(action.ward);
  if (in == incoming_.end() || in->second.id != action.id) {
    announced_[action.ward] = {action.id, action.image_digest};  // its slot is still in use
    return;
  }
  in->second.expected = action.image_digest;
  seal_if_proven(action.ward);
}

void Agent::Impl::perform(const protocol::AbortRound& action) {
  aborted_.insert(action.id);
  for (auto it = incoming_.begin(); it != incoming_.end();) {
    const Incoming& in = it->second;
    if (in.fetch || in.id != action.id || (in.streaming && !in.arrived)) {
      ++it;  // its pieces are on their way: taken to the end, then answered
      continue;
    }
    post_event(protocol::ReplicaFailed{in.owner, in.id, "the step failed"});
    it = incoming_.erase(it);
  }
}

void Agent::Impl::perform(const protocol::NoteFirstComplete& action) {
  try {
    store_->compare_and_create(
        note_key(), std::to_string(action.id.generation) + " " + std::to_string(action.id.step));
    post_event(protocol::NoteWritten{});
  } catch (const Error& e) {
    store_failed_ = true;
    post_event(protocol::Broken{options_.rank, ErrorKind::kPeerLost,
                                std::string("cannot write to the Store: ") + e.what()});
  }
}

void Agent::Impl::perform(const protocol::Announce& action) {
  if (!job_ || job_->id != action.id) {
    // A step that this rank left out, or that was refused before it got a slot.
    if (pending_job_ && pending_job_->step == action.id.step) {
      pending_job_->accepted.set_value();
      pending_job_->staged.set_value();  // nothing of it was or will be read
      pending_job_->outcome.set_value(Outcome::kFailed);
      pending_job_->decided = pending_job_->written = true;
      settle(std::exchange(pending_job_, nullptr));
    }
    return;
  }
  const auto job = job_;
  if (job->decided) return;
  job->decided = true;
  const bool complete = action.verdict == protocol::Verdict::kComplete;
  if (complete || action.verdict == protocol::Verdict::kFailed) {
    {
      const std::lock_guard lock(mutex_);
      ++(complete ? stats_.complete : stats_.failed);
      if (complete) stats_.replicate_seconds = seconds_since(job->requested);
    }
    if (!complete) {
      warn("step " + std::to_string(action.id.step) + " failed: rank " +
           std::to_string(action.rank) + " voted no: " + action.why);
    }
    // What is due on disk holds its slots before the next stage() can ask for them.
    if (complete && options_.persist_every > 0 &&
        complete_in_generation_++ % options_.persist_every == 0) {
      persist(action.id);
    }
    settle(job);
    job->outcome.set_value(complete ? Outcome::kComplete : Outcome::kFailed);
  }
  // kOpen: the loss that follows is what its Staging throws.
}

void Agent::Impl::persist(ImageId id) {
  auto leases = std::make_shared<std::vector<ReadLease>>();
  try {
    for (const auto& [key, info] : vault_.slots()) {
      if (info.state != SlotState::kSealed || info.image.identity.id != id) continue;
      // A file stands alone: what leaves something out is none.
      if (key.owner_rank != options_.rank && info.image.shared_bytes != 0) continue;
      leases->push_back(vault_.read(key));
    }
  } catch (const Error& e) {
    warn("step " + std::to_string(id.step) + " is complete in memory but not on disk: " + e.what());
    const std::lock_guard lock(mutex_);
    ++stats_.persist_failed;
    return;
  }
  for (const ReadLease& lease : *leases) hold(lease.key());
  {
    const std::lock_guard lock(mutex_);
    ++persisting_;
  }
  persist_->post([this, id, leases, epoch = epoch_.load()] {
    const auto begun = std::chrono::steady_clock::now();
    bool good = true;
    for (const ReadLease& lease : *leases) {
      try {
        // Older files go when all ranks have this one: it must not be what rotted in a slot.
        (void)verify_image(lease.image());
        files_.publish(lease.info(), lease.image());
      } catch (const Error& e) {
        good = false;
        warn("step " + std::to_string(id.step) +
             " is complete in memory but not on disk: " + e.what());
      }
    }
    std::vector<SlotKey> keys;
    for (ReadLease& lease : *leases) {
      keys.push_back(lease.key());
      lease.release();
    }
    // Not post(): the slots are to be released in whatever generation this ends.
    loop_->post([this, id, keys, good, epoch, seconds = seconds_since(begun)] {
      for (const SlotKey key : keys) release(key);
      if (good && epoch == epoch_) feed(protocol::Persisted{id});
      const std::lock_guard lock(mutex_);
      --persisting_;
      ++(good ? stats_.persisted : stats_.persist_failed);
      stats_.persist_seconds = seconds;
      changed_.notify_all();
    });
  });
}

}  // namespace meshstage
