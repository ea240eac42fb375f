#include <meshstage/core/checkpoint/checkpointer.hpp>

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <utility>

#include <meshstage/core/checkpoint/any_world_impl.hpp>
#include <meshstage/core/checkpoint/metrics_writer_impl.hpp>
#include <meshstage/core/checkpoint/progress_impl.hpp>
#include <meshstage/core/checkpoint/run_impl.hpp>
#include <meshstage/core/checkpoint/trace_impl.hpp>
#include <meshstage/core/checkpoint/trainer_signs_impl.hpp>
#include <meshstage/core/checkpoint/training_group_impl.hpp>
#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/several_connections.hpp>
#include <meshstage/core/comm/supervisor.hpp>
#include <meshstage/core/error/ranks_text.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/replicate/agent.hpp>
#include <meshstage/core/replicate/agreement.hpp>
#include <meshstage/core/replicate/report.hpp>
#include <meshstage/core/vault/vault.hpp>

namespace meshstage {
namespace {

/// A name for a job that has none. No restart can find such a job, so any unique name will do.
std::string unique_job() {
  std::random_device random;
  return "job-" + std::to_string(getpid()) + "-" + std::to_string(random());
}

/// The absolute path of a directory as a user writes it: "ckpt" is below the working directory,
/// "~/ckpt" below HOME.
std::filesystem::path resolved(const std::filesystem::path& given, const std::string& option) {
  std::string text = given.string();
  if (text.starts_with("~")) {
    const char* const home = std::getenv("HOME");
    if (home == nullptr || *home == '\0' || (text.size() > 1 && text[1] != '/')) {
      throw InvalidArgument(option + " \"" + text + "\": " +
                            (text.size() > 1 && text[1] != '/'
                                 ? "of home directories only your own, ~/, can be named so"
                                 : "HOME is not set"));
    }
    text.replace(0, 1, home);
  }
  return std::filesystem::absolute(text).lexically_normal();
}

void check(const CheckpointerOptions& options) {
  const auto refuse = [](const std::string& what) { throw InvalidArgument(what); };
  if (options.deadline.count() < 100) {
    refuse("deadline of " + std::to_string(options.deadline.count()) +
           " ms: heartbeats need at least 100 ms");
  }
  if (options.forming_deadline.count() <= 0) refuse("forming_deadline must be positive");
  if (options.block_bytes < 4096 || (options.block_bytes & (options.block_bytes - 1)) != 0) {
    refuse("block_bytes is " + std::to_string(options.block_bytes) +
           "; a power of two from 4096 on is needed");
  }
  const auto check_connections = [&](const std::string& option, unsigned number) {
    if (number <= kMostConnections) return;
    refuse(option + " is " + std::to_string(number) + "; the maximum is " +
           std::to_string(kMostConnections));
  };
  check_connections("connections", options.connections);
  check_connections("recovery_connections", options.recovery_connections);
  if (options.keep == 0) refuse("keep is 0; the newest step on disk stays, so at least 1");
}

}  // namespace

class Checkpointer::Impl {
 public:
  Impl(CheckpointerOptions options, Deadline deadline)
      : log_(std::make_shared<replicate::Log>(options.log)),
        options_(complete(std::move(options), *log_)),
        membership_({.job = options_.job,
                     .rank = options_.environment->rank,
                     .world_size = options_.environment->world_size,
                     .store = reached(deadline),
                     .transport = options_.transport,
                     .data_peers = replicate::data_peers(options_),
                     .connections = options_.connections,
                     .recovery_connections = options_.recovery_connections,
                     .agreement = replicate::agreement(options_),
                     .training_links = options_.training_links,
                     .device_transport = detail::device_transport(options_),
                     .launch = options_.environment->launch,
                     .take_over = options_.take_over,
                     .patience = options_.deadline / 2,
                     .sign_of_life = [this] { return signs_.now(); },
                     .waits = [this](const std::string& text) { warn(text); },
                     .failed = [this](const std::string& text) { warn(text); }}),
        // No vault is touched before the Store has said yes.
        agent_(agent_options(), options_.store_object, enter(deadline), {}, log_),
        reports_(options_.environment->supervisor, options_.environment->rank) {
    if (metrics_) followed_.emplace(*metrics_, [this] { return agent_.stats(); });
    form(deadline);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    agent_.leave();
    agent_.stop_persisting();  // the last figures have it
  }

  /// Agent::recover(), with a line for a person if it takes longer than a second. If there is
  /// nothing to recover, all ranks stage step 0. Step 0 may fail without a rank's death; recover()
  /// gives up after that has happened a few times in a row.
  Recovered recover(Value& state) {
    constexpr int kMostBlameless = 3;
    try {
      const Recovered recovered = recover_once(state);
      blameless_ = 0;
      return recovered;
    } catch (const PeerLost& e) {
      if (e.rank() || ++blameless_ < kMostBlameless) throw;
      throw InvalidState("recover() gives up: " + std::to_string(blameless_) +
                         " times in a row it ended without a rank's death; the last time: " +
                         e.what() + "; the warnings say on which rank, and why");
    }
  }

  /// Ends the generation on every rank, names no rank as dead, and throws the loss.
  [[noreturn]] void end_generation(const std::string& why) {
    agent_.end_generation(why);
    agent_.throw_if_lost();
    throw PeerLost(why);  // it was being left
  }

  /// Called outside a generation, because forming one failed: throws that error again.
  void check_formed() {
    signs_.call();
    if (unformed_) std::rethrow_exception(unformed_);
  }

  /// A group for the trainer, as `call` returns it.
  std::shared_ptr<ProcessGroup> usable(const std::shared_ptr<ProcessGroup>& group,
                                       const std::string& call) {
    check_formed();
    if (finished_) throw InvalidState(call + " after finish()");
    agent_.throw_if_lost();
    if (!group) throw InvalidState(call + " outside a generation");
    return group;
  }

  /// Another process has this rank's place, as rejoin() found: nothing brings it back.
  void check_not_fenced() const {
    try {
      if (unformed_) std::rethrow_exception(unformed_);
    } catch (const Fenced&) {
      throw;
    } catch (const Error&) {
      // Whatever else it was, rejoin() is the answer to it.
    }
  }

  /// finish() says that the job is over, and notes it. A process that was stopped while another
  /// start took its place, and then has no step to decide any more, asks nobody else before. A
  /// Store that does not answer keeps no job from its end.
  void check_place() {
    try {
      membership_.check_not_replaced(Deadline::after(options_.deadline / 4));
    } catch (const Fenced&) {
      unformed_ = std::current_exception();
      throw;
    } catch (const Error& e) {
      warn(std::string("finish(): the Store does not say whether this rank was replaced: ") +
           e.what());
    }
  }

  void form(Deadline deadline) {
    agent_.leave();
    group_ = device_group_ = {};
    trained_ = {};
    generation_ = {};
    reports_.forming();
    try {
      const detail::Progress waiting(std::chrono::seconds(2), [this](std::chrono::seconds waited) {
        const std::vector<int> absent =
            membership_.absent(Deadline::after(std::chrono::seconds(5)));
        const std::string whom = absent.empty() ? "the others to connect"
                                                : "ranks " + ranks_text(absent) + " of " + world();
        const auto longest = options_.forming_deadline;
        const std::string of = Deadline::after(longest).is_never()
                                   ? ""
                                   : " of " + std::to_string(longest.count() / 1000);
        warn("waiting for " + whom + "; " + std::to_string(waited.count()) + of + " s");
      });
      generation_ = membership_.form(agent_.highest_generation(), deadline);
    } catch (...) {
      reports_.alive();
      unformed_ = std::current_exception();
      throw;
    }
    unformed_ = nullptr;
    // A second longer than the silence after which a rank counts as lost. So the error names the
    // silent rank, and not a rank that waits for the silent one.
    constexpr std::chrono::milliseconds kLonger{1000};
    const auto limit =
        std::min(options_.deadline, std::chrono::milliseconds::max() - kLonger) + kLonger;
    agent_.begin(generation_);
    group_ = detail::with_limit(generation_.training, limit, agent_.collective_waits());
    if (generation_.device) {
      // Nobody counts what NCCL moves, so its transfers have the limit in all.
      device_group_ = detail::with_limit(generation_.device, limit,
                                         std::make_shared<replicate::CollectiveWaits>());
    }
    reports_.joined(generation_.number);
  }

  const std::shared_ptr<replicate::Log> log_;
  const CheckpointerOptions options_;
  const std::shared_ptr<detail::LastPoint> passed_ = std::make_shared<detail::LastPoint>();
  const std::shared_ptr<detail::Trace> trace_ =
      options_.trace.empty()
          ? nullptr
          : std::make_shared<detail::Trace>(options_.trace, options_.environment->rank);
  const std::shared_ptr<detail::MetricsWriter> metrics_ =
      detail::MetricsWriter::wanted(options_)
          ? std::make_shared<detail::MetricsWriter>(options_,
                                                    [this](const std::string& text) { warn(text); })
          : nullptr;
  detail::TrainerSigns signs_;
  Membership membership_;
  Agent agent_;
  std::optional<detail::MetricsWriter::Following> followed_;  ///< After the agent: it reads it.
  SupervisorReports reports_;
  Generation generation_;
  std::shared_ptr<ProcessGroup> group_;  ///< The generation's, for the trainer.
  std::shared_ptr<ProcessGroup>
      device_group_;  ///< The same on its device; null without the option.
  bool finished_ = false;
  std::optional<std::uint64_t> trained_;  ///< Where a run() of this generation ended.

 private:
  int blameless_ = 0;  ///< Recoveries in a row that ended without a death.
  std::exception_ptr unformed_;

  Recovered recover_once(Value& state) {
    const detail::Progress waiting(std::chrono::seconds(1), [this](std::chrono::seconds waited) {
      const auto read = agent_.reads().slowest();
      warn("recovering in " + generation_text(generation_.number) + " for " +
           std::to_string(waited.count()) + " s; passed last: " + passed_->text() +
           (read ? "; " + how_far(*read) + " " + read->verb + " of " + read->path : ""));
    });
    const Recovered recovered = agent_.recover(state);
    if (recovered.id.exists()) return recovered;
    const detail::FoundNothing nothing{options_, generation_, agent_,
                                       [this](const std::string& text) { warn(text); }};
    if (const auto taken = detail::take_old_step(nothing, state, unformed_)) {
      begin_with_step(state, taken->id.step);
      agent_.free_superseded(taken->id);
      return {.step = taken->id.step,
              .id = {generation_.number, taken->id.step},
              .source = taken->from_files ? Source::kDisk : Source::kHolderMemory,
              .from_rank = options_.environment->rank,
              .generation = generation_.number,
              .old_world_size = taken->world_size};
    }
    begin_with_step(state, 0);
    if (options_.any_world) agent_.free_superseded(kNoImage);
    return recovered;
  }

  /// Stages the first step. The recovery restored nothing, so every rank's tensors are those with
  /// which its program began, or were put together from the files of another number of ranks or of
  /// another cut. They stay so until all ranks have the step, because recover() does not return
  /// before. Whichever rank dies from here on, survivors and replacements go on from the same bits.
  void begin_with_step(const Value& state, std::uint64_t step) {
    Staging first = agent_.stage(state, step, Beside::kNothing);  // the trainer waits
    const std::string name = "step " + std::to_string(step);
    agent_.wait(first, options_.forming_deadline);  // ranks may call recover() so much later
    if (first.outcome().get() == Outcome::kComplete) return;
    // Another rank may not have staged the step yet, and must not take this rank's leaving for a
    // death.
    end_generation(name + " failed without a rank's death; all ranks rejoin and try again");
  }

  /// Takes this rank's place in the job; returns in which epoch the vault may be taken.
  std::uint64_t enter(Deadline deadline) {
    const std::uint64_t seen = Vault::highest_epoch({.job = options_.job,
                                                     .rank = options_.environment->rank,
                                                     .directory = options_.vault_directory,
                                                     .fs = options_.file_system});
    return membership_.enter(seen, deadline);
  }

  void warn(const std::string& text) const {
    log_->write({LogLine::Level::kWarning, "meshstage: job " + options_.job + ", rank " +
                                               std::to_string(options_.environment->rank) + ": " +
                                               text});
  }
  [[nodiscard]] std::string world() const {
    return std::to_string(options_.environment->world_size);
  }

  /// Waits for the Store, which may have been started together with the ranks. If the wait is
  /// longer than a start should take, one line says so.
  std::shared_ptr<Store> reached(Deadline deadline) const {
    Deadline silent = Deadline::after(std::chrono::seconds(2));
    options_.store_object->wait_reachable(deadline, {}, [&](const std::string& why) {
      if (!silent.expired()) return;
      silent = Deadline::never();
      warn("waiting: " + why);
    });
    return options_.store_object;
  }

  /// Fills in every default, so that all other code reads only the options.
  static CheckpointerOptions complete(CheckpointerOptions o, replicate::Log& log) {
    check(o);
    detail::check_device_group(o);
    if (!o.environment) o.environment = RankEnvironment::detect();
    if (o.job.empty()) o.job = o.environment->job;
    o.take_over = o.take_over || o.environment->take_over;
    if (o.job.empty()) {
      if (o.environment->world_size > 1) {
        throw InvalidArgument(
            "the job has no id: give CheckpointerOptions::job or MESHSTAGE_JOB, the same on every "
            "rank and at every restart");
      }
      o.job = unique_job();
      log.write({LogLine::Level::kWarning, "meshstage: no job id was given, so this job is \"" +
                                               o.job + "\" and no restart will find its images"});
    }
    if (!is_valid_job_name(o.job)) {
      throw InvalidArgument("job id \"" + o.job + "\": [A-Za-z0-9._-]{1,64} is needed");
    }
    if (o.directory.empty()) o.directory = default_directory(o.job);
    o.directory = resolved(o.directory, "directory");
    o.vault_directory = resolved(o.vault_directory, "vault_directory");
    if (!o.trace.empty()) o.trace = resolved(o.trace, "trace");
    if (!o.metrics.empty()) o.metrics = resolved(o.metrics, "metrics");
    if (!o.store_object) {
      std::string address = o.store.empty() ? o.environment->store : o.store;
      if (address.empty()) address = (o.directory / "store").string();
      o.store_object = open_store(address);
    }
    fill_in_connections(o);
    if (!o.transport) {
      TcpTransportOptions tcp;
      tcp.host = o.environment->host;
      tcp.single_host = o.environment->single_host();
      tcp.links.silence_deadline = o.deadline;
      tcp.links.heartbeat_interval =
          std::clamp(o.deadline / 8, std::chrono::milliseconds(20), std::chrono::milliseconds(500));
      o.transport = make_tcp_transport(tcp);
    }
    return o;
  }

  static void fill_in_connections(CheckpointerOptions& o) {
    if (o.connections == 0 && !o.transport) {
      const auto local = static_cast<unsigned>(std::max(1, o.environment->local_world_size));
      const AvailableProcessors processors = available_processors();
      o.connections = default_connections(processors, local);
      if (o.recovery_connections == 0) {
        o.recovery_connections = default_recovery_connections(processors, local);
      }
    }
    o.connections = std::max(o.connections, 1U);
    o.recovery_connections = std::max(o.recovery_connections, o.connections);
  }

  /// The options for the agent. Its observer also notes the points, for lines about long
  /// recoveries.
  [[nodiscard]] CheckpointerOptions agent_options() const {
    CheckpointerOptions o = options_;
    o.observer = [passed = passed_, trace = trace_, metrics = metrics_,
                  theirs = options_.observer](const PointEvent& event) {
      passed->note(event);
      if (trace) trace->note(event);
      if (metrics) metrics->note(event);
      if (theirs) theirs(event);
    };
    return o;
  }
};

Checkpointer::Checkpointer(CheckpointerOptions options) {
  const Deadline deadline = Deadline::after(options.forming_deadline);
  impl_.reset(new Impl(std::move(options), deadline));
}
Checkpointer::~Checkpointer() = default;

Recovered Checkpointer::recover(Dict& state) {
  impl_->check_formed();
  Value value(state);  // a handle to the same dict
  return impl_->recover(value);
}

Staging Checkpointer::stage(const Dict& state, std::uint64_t step) {
  impl_->check_formed();
  return impl_->agent_.stage(Value(state), step);
}

void Checkpointer::wait(Staging& staging) { impl_->agent_.wait(staging, impl_->options_.deadline); }

void Checkpointer::tell_waiting() { impl_->agent_.tell_waiting(); }

Checkpointer& Checkpointer::rejoin() {
  if (impl_->finished_) throw InvalidState("rejoin() after finish()");
  impl_->check_not_fenced();
  impl_->form(Deadline::after(impl_->options_.forming_deadline));
  return *this;
}

std::uint64_t Checkpointer::run(Dict& state, std::uint64_t steps, const RunBody& body,
                                const RunOptions& options) {
  return detail::run(
      {.ckpt = *this,
       .trained = impl_->trained_,
       .device_group = impl_->device_group_,
       .streams = impl_->options_.streams,
       .waits_when_busy = impl_->options_.when_busy == WhenBusy::kWait,
       .end_generation = [this](const std::string& why) { impl_->end_generation(why); }},
      state, steps, body, options);
}

std::shared_ptr<ProcessGroup> Checkpointer::group() const {
  return impl_->usable(impl_->group_, "group()");
}

std::shared_ptr<ProcessGroup> Checkpointer::device_group() const {
  if (!impl_->options_.device_group) {
    throw InvalidState("device_group() needs CheckpointerOptions::device_group");
  }
  return impl_->usable(impl_->device_group_, "device_group()");
}

int Checkpointer::rank() const noexcept { return impl_->options_.environment->rank; }
int Checkpointer::world_size() const noexcept { return impl_->options_.environment->world_size; }
std::uint64_t Checkpointer::generation() const noexcept { return impl_->generation_.number; }
const std::string& Checkpointer::job() const noexcept { return impl_->options_.job; }
Stats Checkpointer::stats() const { return impl_->agent_.stats(); }
const std::vector<int>& Checkpointer::wards() const noexcept { return impl_->agent_.wards(); }
Replica Checkpointer::held(int ward, const NodeRegistry& registry) {
  impl_->check_formed();
  return impl_->agent_.held(ward, registry);
}
void Checkpointer::persist_now() { impl_->agent_.wish(false, true); }
void Checkpointer::request_termination() { impl_->agent_.wish(true, false); }
bool Checkpointer::ending() const { return impl_->agent_.end_agreed(); }
void Checkpointer::finish() {
  impl_->check_formed();
  if (!impl_->finished_) impl_->check_place();
  impl_->agent_.finish();
  if (std::exchange(impl_->finished_, true)) return;
  impl_->reports_.left();  // nobody waits for this rank any more
  impl_->group_->abort(
      std::make_exception_ptr(InvalidState("the trainer's group was used after finish()")));
  if (impl_->device_group_) impl_->device_group_->close();
}

}  // namespace meshstage
