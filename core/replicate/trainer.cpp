#include <meshstage/core/replicate/trainer.hpp>

#include <algorithm>
#include <exception>
#include <map>
#include <string>
#include <string_view>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/ranks_text.hpp>
#include <meshstage/core/image/flatten.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/image/safetensors.hpp>
#include <meshstage/core/memory/room.hpp>
#include <meshstage/core/replicate/completion.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/hands.hpp>

namespace meshstage::replicate {
namespace {

/// Waits for the result, however long that takes, and leaves it there. Calls `meanwhile` each time
/// that another `length` has passed.
template <class T, class F>
void wait_in_turns(Work<T>& work, std::chrono::milliseconds length, F&& meanwhile) {
  while (true) {
    try {
      return work.wait(Deadline::after(length));
    } catch (const Timeout&) {
      if (!work.valid()) throw;  // the work's own error
    }
    meanwhile();
  }
}

}  // namespace

Trainer::Trainer(Engine& engine, OwnStep& own, Slots& slots, Persister& persister)
    : engine_(engine), own_(own), slots_(slots), persister_(persister) {
  if (engine_.options.snapshot == Snapshot::kOff) return;
  snapshot_.emplace(engine_.options.snapshot_max_bytes,
                    [this](const std::string& text) { engine_.report.warn(text); });
}

// --- stage() -------------------------------------------------------------------------------------

Staging Trainer::stage(const Value& state, std::uint64_t step, Beside beside) {
  if (!engine_.gate.enter_step(engine_.options.when_busy, patience(engine_.options.deadline))) {
    engine_.post(protocol::StageSkipped{step, {}});
    Promise<Outcome> outcome;
    outcome.set_value(Outcome::kSkipped);
    Promise<DiskOutcome> persisted;
    persisted.set_value(DiskOutcome::kNotDue);
    return {Work<void>(), outcome.work(), persisted.work(), step};
  }
  Staging staging;
  Work<void> accepted;
  try {
    const auto job = make_job(state, step);
    job->beside = beside;
    staging = Staging(job->staged.work(), job->outcome.work(), job->persisted.work(), step,
                      job->staged.devices());
    accepted = job->accepted.work();
    engine_.to_loop(engine_.scope.enter(), [this, job] { own_.request(job); });
  } catch (...) {  // of any kind: the other ranks wait for this step, so its no is sent at once
    vote_no(step, std::current_exception());
    throw;
  }
  try {
    wait_for_engine(accepted);
  } catch (...) {
    engine_.gate.leave_step();
    throw;
  }
  return staging;
}

Patience Trainer::patience(std::chrono::milliseconds length) {
  return {length, [this](std::uint32_t times) {
            if (!engine_.loop.answers_within(Deadline::length(engine_.options.deadline))) {
              return engine_.gate.lose(engine_hangs());
            }
            engine_.post(protocol::Waited{times});
          }};
}

Loss Trainer::engine_hangs() const {
  return {ErrorKind::kInvalidState, engine_.rank,
          "the engine of rank " + std::to_string(engine_.rank) + " has done nothing for " +
              std::to_string(engine_.options.deadline.count()) +
              " ms; this process cannot go on and must be ended, the others have left it"};
}

void Trainer::wait_for_engine(Work<void>& work) const {
  wait_in_turns(work, engine_.options.deadline, [this] {
    if (!engine_.loop.answers_within(Deadline::length(engine_.options.deadline))) {
      std::rethrow_exception(engine_hangs().error());
    }
  });
}

void Trainer::tell_waiting() { engine_.post(protocol::Waited{engine_.gate.count_wait()}); }

void Trainer::wait(Staging& staging, std::chrono::milliseconds length) {
  wait_in_turns(staging.outcome(), length, [this] { tell_waiting(); });
}

void Trainer::vote_no(std::uint64_t step, const std::exception_ptr& error) noexcept {
  try {
    // The gate is left behind the step's outcome, so that the next stage() finds none in flight.
    engine_.loop.run([&] {
      engine_.feed(protocol::StageSkipped{step, "it could not be staged there: " + text_of(error)});
    });
  } catch (...) {  // the others would wait for this rank's vote
    engine_.loop.fail(std::current_exception());
  }
  engine_.gate.leave_step();
}

std::shared_ptr<StageJob> Trainer::make_job(const Value& state, std::uint64_t step) {
  auto job = std::make_shared<StageJob>();
  job->step = step;
  const std::set<int> apart = engine_.gate.apart();
  auto source =
      plan_ && plan_apart_ == apart ? plan_->capture(state, engine_.options.streams) : std::nullopt;
  if (!source) {
    plan_ = std::make_shared<const StagingPlan>(
        StagingPlan::compile(state, plan_.get(), plan_options(state, apart)));
    plan_apart_ = apart;
    say_what_python_refuses();
    source = plan_->capture(state, engine_.options.streams);
    if (!source) throw InvalidState("the state dict changed while stage() read it");
  }
  // The room is checked even if the plan is an old one, so that a stage() that was refused is
  // refused again.
  const ImageLayout& layout = plan_->layout();
  const std::pair room{layout.image_bytes, layout.image_bytes - layout.borrowed_bytes};
  if (room != room_for_) {
    check_room_for(room.first, room.second);
    room_for_ = room;
  }
  job->plan = plan_;
  job->source = std::move(*source);
  job->on_devices = !job->source.ready.empty();
  if (job->on_devices) use_device(job->source.ready.front().device);
  if (engine_.options.verify_source) job->digests.emplace(state, job->source);
  if (job->on_devices) take_snapshot(*job);
  job->sizes = {layout.image_bytes, layout.data_begin, layout.manifest_digest,
                layout.borrowed_bytes,
                static_cast<std::uint32_t>(layout.borrowed.size() + layout.lent.size())};
  engine_.gate.count([&](Stats& stats) { stats.image_bytes = layout.image_bytes; });
  return job;
}

void Trainer::say_what_python_refuses() {
  const std::uint64_t header = plan_->layout().data_begin;
  if (header <= kMaxPythonHeaderBytes || header_told_) return;
  header_told_ = true;
  engine_.report.warn("the images have a header of " + std::to_string(header) +
                      " bytes: meshstage reads the files of this state, Python's safetensors "
                      "refuses headers above " +
                      std::to_string(kMaxPythonHeaderBytes) +
                      " bytes (fewer tensors, or shorter names, make it smaller)");
}

void Trainer::use_device(Device device) {
  engine_.vault.use_pinner(DeviceRuntime::of(device.type).pinner(device),
                           [this](const std::string& text) { engine_.report.warn(text); });
}

void Trainer::take_snapshot(StageJob& job) {
  if (!snapshot_) return;
  job.snapshot = snapshot_->take(job.source, Deadline::after(engine_.options.deadline));
  if (job.snapshot) {
    const auto& storages = job.source.storages;
    job.staged.devices()->set(job.source.ready);
    if (std::none_of(storages.begin(), storages.end(), [](const Storage& storage) {
          return storage.device().is_cpu() && storage.nbytes() > 0;
        })) {
      job.staged.devices()->set_cpu_read();  // before_update() waits for no slot
    }
  }
  count_snapshot();
}

void Trainer::count_snapshot() {
  engine_.gate.count([this](Stats& stats) {
    stats.snapshot_bytes = snapshot_->bytes();
    stats.snapshots_refused = snapshot_->refused();
  });
}

PlanOptions Trainer::plan_options(const Value& state, const std::set<int>& apart) const {
  PlanOptions plan{.block_bytes = engine_.options.block_bytes};
  const auto& borrowed = engine_.options.borrowed;
  if (!borrowed.paths) return plan;
  const int me = engine_.rank;
  const auto paths = [&](int owner, int at) {
    return exchange::names_for_a_want(borrowed.paths(state, owner, at));
  };
  for (const int other : engine_.config->lenders[static_cast<std::size_t>(me)]) {
    if (!apart.contains(other)) plan.borrowed.push_back({other, paths(me, other)});
  }
  std::map<std::string_view, int> taken;
  for (const auto& part : plan.borrowed) {
    for (const auto& name : part.names) {
      const auto [it, first] = taken.emplace(name, part.rank);
      if (first) continue;
      throw InvalidArgument("the tensor \"" + name + "\" is borrowed from rank " +
                            std::to_string(it->second) + " and from rank " +
                            std::to_string(part.rank) +
                            ": BorrowedTensors::paths names it for one");
    }
  }
  for (const int owner : engine_.config->borrowers) {
    plan.lent.push_back({owner, paths(owner, me)});
  }
  return plan;
}

void Trainer::check_room_for(std::uint64_t image_bytes, std::uint64_t replica_bytes) {
  // Two own slots and two for each ward.
  const std::uint64_t all =
      2 * (image_bytes + 4096) + 2 * engine_.config->wards.size() * (replica_bytes + 4096);
  if (all <= engine_.vault.bytes_held()) return;
  // First the limits: what another rank takes meanwhile counts twice then, and never too little.
  const auto limits = read_room_limits(engine_.fs, engine_.options.vault_directory);
  RoomRequest whole{.what = "the vault (two own images of " + std::to_string(image_bytes) +
                            " bytes each, and two replicas of each ward, taken to be as large as "
                            "this rank's own of " +
                            std::to_string(replica_bytes) + ")",
                    .bytes_per_rank = all,
                    .local_ranks = engine_.options.environment->local_world_size,
                    .held = engine_.vault.bytes_held_by_generation(all)};
  const std::uint64_t left = keeps_old_in_memory() ? engine_.vault.bytes_left() : std::uint64_t{0};
  if (left > 0) {
    // These images of another number of ranks go when the first step is complete, which takes half
    // of the slots.
    RoomRequest first = whole;
    first.what = "half of " + whole.what + ", beside images of another number of ranks of " +
                 std::to_string(left) + " bytes";
    first.bytes_per_rank = all / 2;
    first.held = engine_.vault.bytes_held_by_generation(all / 2);
    check_room(first, limits);
    whole.held += left;
  }
  check_room(whole, limits);
}

// --- recover() -----------------------------------------------------------------------------------

Recovered Trainer::recover(Value& state) {
  const auto length = engine_.options.forming_deadline;
  engine_.gate.check_recover();
  std::shared_ptr<const ReadLease>
      image;  // from the comparison to the restoring, which then asks the system for nothing
  int compared = -1;  // its slot
  while (true) {
    const RecoverCommand now = engine_.gate.next_command(patience(length));
    switch (now.kind) {
      case RecoverCommand::Kind::kNone:
        break;
      case RecoverCommand::Kind::kCheck:
        image = compare(now, state);
        compared = now.slot;
        break;
      case RecoverCommand::Kind::kRestore:
      case RecoverCommand::Kind::kNothing: {
        const Recovered result = restore(now, image, state, Deadline::after(length));
        old_ = now.old;
        mismatch_ = now.failure;
        old_files_ = now.old_files;
        if (!mismatch_.why.empty() && image && keeps_old_in_memory()) {
          const auto file = engine_.vault.file_of({engine_.rank, compared});
          old_files_.push_back(MappedFile::part_of(file, image->image(), image));
        }
        image.reset();
        // What an old job left stays until a step of this one is complete: free_superseded().
        if (now.kind == RecoverCommand::Kind::kRestore || !engine_.options.any_world) {
          free_superseded(now.id);
        }
        engine_.gate.recovered();
        return result;
      }
      case RecoverCommand::Kind::kFailed: {
        const protocol::Failure& f = now.failure;
        throw_error(f.kind, f.why, f.rank < 0 ? std::nullopt : std::optional<int>(f.rank), {},
                    f.path);
      }
    }
  }
}

bool Trainer::keeps_old_in_memory() const { return engine_.keeps_old_in_memory; }

void Trainer::free_superseded(ImageId recovered) {
  try {
    engine_.vault.free_superseded(recovered);
  } catch (const SystemError& e) {  // tried again by the next recover(), or finish()
    engine_.report.warn(std::string("files of a replaced process cannot be removed: ") + e.what());
  }
}

std::shared_ptr<const ReadLease> Trainer::compare(const RecoverCommand& command,
                                                  const Value& state) {
  std::shared_ptr<const ReadLease> image;
  try {
    image = std::make_shared<const ReadLease>(engine_.vault.read({engine_.rank, command.slot}));
    protocol::StructureChecked answer;
    if (const auto difference = compare_structure(image->image(), state)) {
      answer.path = difference->path;
      answer.mismatch = describe_mismatch(*difference) + " (staged as rank " +
                        std::to_string(engine_.rank) + " of " +
                        std::to_string(image->info().identity.world_size) +
                        " ranks, recovered by " + std::to_string(engine_.world_size) + ")";
    }
    if (answer.mismatch.empty()) require_writable(state);
    engine_.post(std::move(answer));
  } catch (const Error& e) {  // the other ranks wait for this one, so they get the error, too
    engine_.post(protocol::FetchFailed{engine_.rank, e.kind(), e.message()});
  } catch (...) {  // from a user's node, or no memory
    engine_.post(protocol::FetchFailed{engine_.rank, ErrorKind::kInvalidState,
                                       text_of(std::current_exception())});
  }
  return image;
}

Recovered Trainer::restore(const RecoverCommand& command,
                           const std::shared_ptr<const ReadLease>& image, Value& state,
                           Deadline deadline) {
  Recovered result;
  result.generation = engine_.generation.number;
  if (command.kind == RecoverCommand::Kind::kRestore) {
    const auto storages = detail::flatten(state).sources;
    if (snapshot_) {
      (void)snapshot_->reserve(storages, deadline);
      count_snapshot();
    }
    for (const auto& storage : storages) {
      if (storage.device().is_cpu()) continue;
      use_device(storage.device());
      engine_.vault.lock_pages(*image);
      break;
    }
    restore_into(image->image(), state,
                 {.streams = engine_.options.streams,
                  .keep = image,
                  .deadline = deadline,
                  .copy_threads = hands_for(engine_.options, Beside::kNothing)});
    result.id = command.id;
    result.step = command.id.step;
    result.source = command.source;
    result.from_rank = command.from_rank;
  }
  return result;
}

// --- finish() ------------------------------------------------------------------------------------

void Trainer::finish() {
  const auto length = engine_.options.forming_deadline;
  if (engine_.gate.wait_idle(patience(length))) return;
  const Deadline deadline = Deadline::after(length);
  if (engine_.options.persist_every > 0) persist_newest(deadline);
  engine_.post(protocol::FinishRequested{});
  engine_.gate.wait_finished(deadline);
}

/// By now all ranks know the same newest step. finish() frees the memory, so a step that cannot be
/// written keeps the job from finishing.
void Trainer::persist_newest(Deadline deadline) {
  Promise<bool> done;
  Work<bool> written = done.work();
  // The task alone has the promise: if the task fails, the wait for it ends.
  engine_.to_loop(engine_.scope.enter(), [this, done = std::move(done)]() mutable {
    persister_.persist_newest(std::move(done));
  });
  try {
    if (written.get(deadline)) return;
  } catch (const Cancelled&) {
    throw_loss_behind_failure();
    throw;
  }
  engine_.gate.throw_if_lost();
  throw IoError(
      "finish(): the newest step is not on disk (the warning says why); it stays in memory");
}

// --- end_generation() ----------------------------------------------------------------------------

void Trainer::end_generation(const std::string& why) {
  engine_.post(protocol::Broken{-1, ErrorKind::kPeerLost, why});
  engine_.loop.run([] {});  // behind the event
}

// --- held() --------------------------------------------------------------------------------------

namespace {

/// Copies what a ward's replica borrows from this rank's own image. Throws InvalidState, naming a
/// tensor, if the replica borrows from another rank, too.
void fill_replica(const ReadLease& own, const ImageInfo& info, std::span<std::byte> image) {
  const auto parts = borrowed_parts(image, info);
  for (const auto& part : parts) {
    const int ward = info.identity.rank;
    if (part.rank != own.key().owner_rank) {
      throw make_error<InvalidState>("the replica of rank " + std::to_string(ward) + " borrows " +
                                         std::to_string(part.pieces.size()) +
                                         " tensors from rank " + std::to_string(part.rank) +
                                         ", \"" + part.pieces.front().name +
                                         "\" the first; only a recovery puts them together",
                                     ward, info.identity.id.step, part.pieces.front().name);
    }
    fill_part(part, own.image(), info, image);
  }
  clear_borrowed_padding(parts, info, image);
}

}  // namespace

std::vector<SlotKey> Trainer::hold_replica(int ward) {
  Promise<std::vector<SlotKey>> found;
  Work<std::vector<SlotKey>> keys = found.work();
  // The task alone has the promise: if the task fails, the wait for it ends.
  engine_.loop.post([this, ward, found = std::move(found)]() mutable {
    slots_.hold_replica(ward, std::move(found));
  });
  try {
    return keys.get();
  } catch (const Cancelled&) {
    throw_loss_behind_failure();
    throw;
  }
}

void Trainer::throw_loss_behind_failure() {
  engine_.loop.run([] {});
  engine_.gate.throw_if_lost();
}

Replica Trainer::held(int ward, const NodeRegistry& registry) {
  const auto& all = engine_.config->wards;
  if (!std::binary_search(all.begin(), all.end(), ward)) {
    throw InvalidArgument("rank " + std::to_string(engine_.rank) + " holds no replica of rank " +
                          std::to_string(ward) +
                          (all.empty() ? "; it holds none" : "; its wards are " + ranks_text(all)));
  }
  engine_.gate.check_recovered("held()");
  const auto keys = hold_replica(ward);
  const std::shared_ptr<void> at_end(nullptr, [this, keys](void*) {
    try {
      engine_.loop.post([this, keys] { slots_.release(keys); });
    } catch (const std::bad_alloc&) {  // they would be held for ever
      engine_.loop.fail(std::current_exception());
    }
  });
  const ReadLease replica = engine_.vault.read(keys.front());
  const ImageInfo& info = replica.info();
  const auto copy = Storage::allocate(info.image_bytes);
  place_replica(replica.image(), info, copy.bytes());
  if (info.borrowed_bytes != 0) {
    if (keys.size() < 2) throw NotFound("no image of this rank's own of that step is there");
    fill_replica(engine_.vault.read(keys.back()), info, copy.bytes());
  }
  (void)verify_image(copy.bytes());
  return {ward, info.identity.id,
          decode_image(copy.bytes(), std::make_shared<Storage>(copy), registry,
                       StorageTraits{.read_only = false})};
}

}  // namespace meshstage::replicate
