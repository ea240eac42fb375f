#include <meshstage/core/checkpoint/any_world_impl.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <utility>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/checkpoint/old_parts_impl.hpp>
#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/identity/digest.hpp>
#include <meshstage/core/memory/room.hpp>
#include <meshstage/core/os/system_error.hpp>
#include <meshstage/core/replicate/hands.hpp>
#include <meshstage/core/reshard/assembly_parts.hpp>
#include <meshstage/core/reshard/step_parts.hpp>

namespace meshstage::detail {
namespace {

/// A step of another number of ranks, or of another cut, with this rank's part of it, still to be
/// written.
struct TakenStep {
  OldWorldStep step;
  Assembly assembly;
};

/// Three numbers of 64 bits: generation (0: no step), step, world size.
std::optional<OldWorldStep> agree(const std::optional<OldWorldStep>& of_root, ProcessGroup& group,
                                  Deadline deadline) {
  std::array<std::byte, 24> bytes{};
  if (group.rank() == 0 && of_root) {
    little_endian::store(bytes.data(), of_root->id.generation);
    little_endian::store(bytes.data() + 8, of_root->id.step);
    little_endian::store(bytes.data() + 16, static_cast<std::uint64_t>(of_root->world_size));
  }
  collectives::broadcast(group, bytes, 0, deadline);
  const ImageId id{little_endian::load<std::uint64_t>(bytes.data()),
                   little_endian::load<std::uint64_t>(bytes.data() + 8)};
  if (!id.exists()) return std::nullopt;
  const auto world_size = little_endian::load<std::uint64_t>(bytes.data() + 16);
  constexpr std::uint64_t kMost = std::uint64_t{1} << 20U;
  if (world_size == 0 || world_size > kMost) {
    throw PeerLost("rank 0 named an old step of " + std::to_string(world_size) + " ranks");
  }
  return OldWorldStep{id, static_cast<int>(world_size)};
}

/// What went wrong at a rank, for the others: kind, path and text. Empty: nothing.
std::vector<std::byte> report(ErrorKind kind, const std::string& path, const std::string& what) {
  std::vector<std::byte> bytes(5 + path.size() + what.size());
  bytes[0] = static_cast<std::byte>(kind);
  little_endian::store(bytes.data() + 1, static_cast<std::uint32_t>(path.size()));
  std::memcpy(bytes.data() + 5, path.data(), path.size());
  std::memcpy(bytes.data() + 5 + path.size(), what.data(), what.size());
  return bytes;
}

[[noreturn]] void rethrow(int rank, std::span<const std::byte> bytes, const OldWorldStep& taken) {
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  const std::size_t path =
      bytes.size() < 5 ? 0 : little_endian::load<std::uint32_t>(bytes.data() + 1);
  if (bytes.size() < 5 + path) throw CorruptData("a rank's report is too short");
  throw_error(static_cast<ErrorKind>(bytes[0]),
              to_string(taken.id) + " of " + std::to_string(taken.world_size) +
                  " ranks cannot be taken over by rank " + std::to_string(rank) + ": " +
                  std::string(text + 5 + path, bytes.size() - 5 - path),
              rank, taken.id.step, std::string(text + 5, path));
}

/// An error on which all ranks agreed.
struct Agreed {
  std::exception_ptr error;
};

/// What all ranks do together, although one of them may not be able to go on.
class Together {
 public:
  /// `length`: how long a rank waits, before it throws, for others to hear the error.
  Together(ProcessGroup& group, const OldWorldStep& taken, std::chrono::milliseconds length)
      : group_(group), taken_(taken), length_(length) {
    hear(taken.id.generation, taken.id.step, static_cast<std::uint64_t>(taken.world_size));
  }

  /// Does this rank's part, unless an earlier part of it failed. Keeps what it throws.
  void attempt(const std::function<void()>& work) {
    if (!wrong_.empty()) return;
    try {
      work();
    } catch (const RejoinNeeded&) {  // the generation ends, at the other ranks too
      throw;
    } catch (const Error& e) {
      wrong_ = report(e.kind(), e.path(), e.what());
    } catch (const std::exception& e) {  // no memory, or a user's node: the others wait for this
      wrong_ = report(ErrorKind::kInvalidState, {}, e.what());
    }
  }
  /// Throws what one rank threw, as Agreed. Throws PeerLost if the ranks have heard different
  /// things from each other since they began: something was changed on its way.
  void agree(Deadline deadline = Deadline::never()) const {
    std::vector<std::byte> mine(8);
    little_endian::store(mine.data(), heard_);
    mine.insert(mine.end(), wrong_.begin(), wrong_.end());
    const auto reports = collectives::all_gather_bytes(group_, mine, deadline);
    for (std::size_t rank = 0; rank < reports.size(); ++rank) {
      const auto& report = reports[rank];
      if (report.size() < 8 || little_endian::load<std::uint64_t>(report.data()) != heard_) {
        throw PeerLost("rank " + std::to_string(rank) +
                       " was told something else of the old images");
      }
    }
    for (std::size_t rank = 0; rank < reports.size(); ++rank) {
      const auto wrong = std::span(reports[rank]).subspan(8);
      if (wrong.empty()) continue;
      collectives::leave_together(group_, Deadline::after(length_));
      throw_agreed(static_cast<int>(rank), wrong);
    }
  }
  /// Agrees, then returns what each rank says, by rank.
  [[nodiscard]] std::vector<std::vector<std::byte>> gather(const std::vector<std::byte>& mine) {
    agree();
    auto all = collectives::all_gather_bytes(group_, mine);
    if (all[static_cast<std::size_t>(group_.rank())] != mine) {
      throw PeerLost("what rank " + std::to_string(group_.rank()) +
                     " said of the old images was changed on its way");
    }
    for (const auto& said : all) {
      hear(heard_, digest64(said), said.size());
    }
    return all;
  }

 private:
  void hear(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
    std::array<std::byte, 24> numbers{};
    little_endian::store(numbers.data(), a);
    little_endian::store(numbers.data() + 8, b);
    little_endian::store(numbers.data() + 16, c);
    heard_ = digest64(numbers);
  }
  [[noreturn]] void throw_agreed(int rank, std::span<const std::byte> report) const {
    try {
      rethrow(rank, report, taken_);
    } catch (const Error&) {
      throw Agreed{std::current_exception()};
    }
  }

  ProcessGroup& group_;
  const OldWorldStep& taken_;
  std::chrono::milliseconds length_;
  std::vector<std::byte> wrong_;
  std::uint64_t heard_ = 0;  ///< A digest of the step and of all that was gathered.
};

/// The pairs of an exchange, until every rank has what it needs.
struct OpenPairs {
  OpenPairs() = default;
  OpenPairs(const OpenPairs&) = delete;
  OpenPairs& operator=(const OpenPairs&) = delete;
  ~OpenPairs() {
    if (!pairs) return;
    pairs->links->close();
    pairs->data->close();
  }
  std::optional<Pairs> pairs;
};

/// Whether all ranks say yes. A rank of which a part failed says no; all hear why when they agree
/// next.
bool all_say(Together& all, bool yes) {
  const auto said = all.gather({std::byte{yes}});
  return std::all_of(said.begin(), said.end(),
                     [](const auto& one) { return one == std::vector{std::byte{1}}; });
}

/// The step's files in this rank's directory, and the images of it that the rank keeps in memory.
StepOnDisk find_step(const OldFiles& files, OldWorldStep& step) {
  StepOnDisk there{step.id, step.world_size, {}};
  there.files.resize(static_cast<std::size_t>(step.world_size));
  try {
    there = StepParts::find(files.fs, files.directory, files.job, step.id, step.world_size);
  } catch (const SystemError& e) {
    if (!files.keeps_old_in_memory) throw;
    files.warn(std::string("the directory of images cannot be read: ") + e.what());
  }
  step.from_files = std::any_of(there.files.begin(), there.files.end(),
                                [](const auto& of_rank) { return !of_rank.empty(); });
  StepParts::add_images(there, files.job, files.proven);
  return there;
}

/// The step that rank 0 names (the others' `of_root` is not looked at), if there is one, with this
/// rank's part of it. Writes nothing.
std::optional<TakenStep> plan_old_step(const OldFiles& files, const Value& state,
                                       const std::optional<OldWorldStep>& of_root,
                                       ProcessGroup& group, std::chrono::milliseconds length) {
  const Deadline arrival = Deadline::after(length);
  auto step = agree(of_root, group, arrival);
  if (!step) return std::nullopt;
  collectives::barrier(group, arrival);  // a rank whose trainer does not come shows here
  const int rank = group.rank();
  Together all(group, *step, length);
  std::optional<replicate::FilesRead> shown;  // while this rank reads
  const auto reading = [&](const std::function<void()>& work) {
    all.attempt([&] {
      shown.emplace(&files.reads);
      work();
    });
    shown.reset();
  };
  Crew crew("ms-prove", files.hands);
  std::unique_ptr<StepStates> old;
  reading([&] {
    (*shown)(files.directory, 0, 0);
    old = StepParts::open(
        files.fs, find_step(files, *step), files.job, files.warn,
        [&](const auto& file, std::uint64_t bytes, std::uint64_t of) {
          if (shown) (*shown)(file, bytes, of);
        },
        &crew, files.proven);
  });
  // Each turn but the last passes over a file that proved to be damaged.
  std::optional<PartPlan> plan;
  for (bool sound = false; !sound;) {
    std::vector<std::byte> mine;
    all.attempt([&] {
      for (int r = 0; r < step->world_size; ++r) {
        mine.push_back(std::byte{StepParts::has_file(*old, r)});
      }
    });
    plan.emplace(all.gather(mine), *step);
    mine.clear();
    all.attempt([&] { mine = plan->ends_of(*old, rank); });
    const auto told = all.gather(mine);
    std::optional<std::vector<ImagePart>> needed;
    reading([&] {
      plan->add_ends(*old, told);
      // As many ranks, cut otherwise: nothing that a rank had for itself may be dropped.
      if (step->world_size == group.size()) {
        StepParts::require_same_paths(*old, state, rank, files.options);
      }
      needed = StepParts::needed(*old, state, rank, group.size(), files.options);
    });
    if (!all_say(all, needed.has_value())) continue;
    all.attempt([&] { mine = PartPlan::encode(*needed); });
    plan->set_needs(all.gather(mine));
    reading([&] { sound = plan->prove_served(*old, rank); });
    sound = all_say(all, sound);
  }
  all.attempt([&] {
    check_room({"the old ranks' parts that come from other ranks", plan->bytes_for(rank),
                files.local_ranks},
               read_room_limits(files.fs, {}));
  });
  all.agree();
  OpenPairs open;
  open.pairs = plan->exchange(*old, rank, files);
  std::optional<Assembly> assembly;
  reading([&] {
    try {
      assembly.emplace(AssemblyParts::read(*old, state, rank, group.size(), files.options));
    } catch (const CorruptData& e) {
      if (!StepParts::came_damaged(*old)) throw;
      // Its file was sound a moment ago. The next recovery looks at all files anew.
      throw PeerLost(e.what());
    }
  });
  // No rank that reads is late. Who dies, or whose disk hangs, ends the generation and this wait.
  collectives::barrier(group, Deadline::never());
  std::vector<std::byte> mine;
  all.attempt([&] {
    AssemblyParts::check(*assembly);
    mine = AssemblyParts::taken(*assembly);
  });
  const auto taken = all.gather(mine);
  all.attempt([&] { AssemblyParts::require_all_taken(*assembly, taken); });
  all.agree(Deadline::after(length));
  for (const auto& warning : assembly->warnings()) files.warn(warning);
  return TakenStep{*step, std::move(*assembly)};
}

/// Connects to these ranks, unless the generation ends meanwhile.
Pairs connect(const FoundNothing& job, const std::vector<int>& peers) {
  std::stop_source lost;
  const StoppableThread watch("ms-old-job", [&](const std::stop_token& over) {
    constexpr std::chrono::milliseconds kLook(100);
    Mutex mutex;
    CondVar never_signalled;
    MutexLock lock(mutex);
    while (!over.stop_requested()) {
      (void)never_signalled.wait_until(lock, over, Deadline::after(kLook), [] { return false; });
      try {
        job.agent.throw_if_lost();
      } catch (const std::exception&) {
        lost.request_stop();
      }
    }
  });
  return job.generation.connect_old_pairs(peers, Deadline::after(job.options.deadline),
                                          lost.get_token());
}

/// The error on which all ranks agreed. If the states of this number of ranks are cut otherwise and
/// do not fit in another cut either: the mismatch that was found first, then that error.
std::exception_ptr explained(const Agreed& all, const protocol::Failure& mismatch) {
  if (mismatch.why.empty()) return all.error;
  try {
    std::rethrow_exception(all.error);
  } catch (const StructureMismatch& e) {
    return std::make_exception_ptr(make_error<StructureMismatch>(
        mismatch.why + "; nor can it be assembled in another cut: " + e.what(), mismatch.rank, {},
        mismatch.path));
  } catch (...) {  // thrown as it is
    return std::current_exception();
  }
}

}  // namespace

std::optional<OldWorldStep> take_old_step(const FoundNothing& job, Value& state,
                                          std::exception_ptr& cannot) {
  const CheckpointerOptions& options = job.options;
  if (!options.any_world) return std::nullopt;
  std::optional<OldWorldStep> found;
  if (const auto old = job.agent.old_step(); old.id.exists()) found = {old.id, old.world_size};
  FileSystem* const fs = options.file_system;
  const OldFiles files{fs != nullptr ? *fs : real_file_system(),
                       options.directory,
                       options.job,
                       *options.any_world,
                       job.warn,
                       job.agent.reads(),
                       options.environment->local_world_size,
                       replicate::hands_for(options, Beside::kNothing),
                       job.agent.take_old_files(),
                       options.block_bytes,
                       [&job](const std::vector<int>& peers) { return connect(job, peers); },
                       [&job] { job.agent.throw_if_lost(); },
                       job.agent.keeps_old_in_memory()};
  const std::string rank = "rank " + std::to_string(job.generation.rank);
  std::optional<TakenStep> taken;
  try {
    taken = plan_old_step(files, state, found, *job.generation.training, options.forming_deadline);
  } catch (const Agreed& all) {
    cannot = explained(all, job.agent.mismatch());
    std::rethrow_exception(cannot);
  } catch (const Error& e) {    // the others wait for this rank
    job.agent.throw_if_lost();  // the agent knows who is to blame
    job.agent.end_generation(rank + " could not go on from the old step: " + e.what());
    job.agent.throw_if_lost();
    throw;
  } catch (...) {
    job.agent.end_generation(rank + " could not go on from the old step");
    throw;
  }
  if (!taken) return std::nullopt;
  try {
    taken->assembly.write(options.streams, Deadline::after(options.forming_deadline), files.hands);
  } catch (const std::exception& e) {  // a device, or a user's node: the others would wait
    job.agent.end_generation(rank + " could not write its state: " + e.what());
    throw;
  } catch (...) {
    job.agent.end_generation(rank + " could not write its state");
    throw;
  }
  return taken->step;
}

}  // namespace meshstage::detail
