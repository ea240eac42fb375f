#include <meshstage/core/checkpoint/checkpointer.hpp>

#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <random>
#include <utility>

#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/vault/vault.hpp>

namespace meshstage {
namespace {

/// For jobs that nobody named: they can never be found again, so any unique name serves.
std::string unique_job() {
  std::random_device random;
  return "job-" + std::to_string(getpid()) + "-" + std::to_string(random());
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
}

}  // namespace

class Checkpointer::Impl {
 public:
  Impl(CheckpointerOptions options, Deadline deadline)
      : options_(complete(std::move(options))),
        agent_(agent_options(), options_.store_object),
        membership_({.job = options_.job,
                     .rank = options_.environment->rank,
                     .world_size = options_.environment->world_size,
                     .store = reached(options_, deadline),
                     .transport = options_.transport,
                     .data_peers = agent_.data_peers(),
                     .agreement = agent_.agreement(),
                     .training_links = options_.training_links}) {
    form(deadline);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { agent_.leave(); }

  void form(Deadline deadline) {
    agent_.leave();
    generation_ = {};
    generation_ = membership_.form(agent_.highest_generation(), deadline);
    agent_.begin(generation_, membership_);
  }

  const CheckpointerOptions options_;
  Agent agent_;
  Membership membership_;
  Generation generation_;

 private:
  /// The Store, which may have been started together with the ranks. One that lets them wait for
  /// longer than starting takes is spoken of, once.
  static std::shared_ptr<Store> reached(const CheckpointerOptions& o, Deadline deadline) {
    Deadline silent = Deadline::after(std::chrono::seconds(2));
    o.store_object->wait_reachable(deadline, {}, [&](const std::string& why) {
      if (!silent.expired()) return;
      silent = Deadline::never();
      const LogLine line{LogLine::Level::kWarning, "meshstage: job " + o.job + ", rank " +
                                                       std::to_string(o.environment->rank) +
                                                       ": waiting: " + why};
      if (o.log) {
        o.log(line);
      } else {
        std::cerr << line.text + "\n";
      }
    });
    return o.store_object;
  }

  /// Fills in every default, so that the rest reads options alone.
  static CheckpointerOptions complete(CheckpointerOptions o) {
    check(o);
    if (!o.environment) o.environment = RankEnvironment::detect();
    if (o.job.empty()) o.job = o.environment->job;
    if (o.job.empty()) {
      if (o.environment->world_size > 1) {
        throw InvalidArgument(
            "the job has no id: give CheckpointerOptions::job or MESHSTAGE_JOB, the same on every "
            "rank and at every restart");
      }
      o.job = unique_job();
      std::cerr << "meshstage: no job id was given, so this job is \"" + o.job +
                       "\" and no restart will find its images\n";
    }
    if (!is_valid_job_name(o.job)) {
      throw InvalidArgument("job id \"" + o.job + "\": [A-Za-z0-9._-]{1,64} is needed");
    }
    if (o.directory.empty()) o.directory = default_directory(o.job);
    if (!o.store_object) {
      std::string address = o.store.empty() ? o.environment->store : o.store;
      if (address.empty()) address = (o.directory / "store").string();
      o.store_object = open_store(address);
    }
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

  [[nodiscard]] AgentOptions agent_options() const {
    AgentOptions a;
    a.job = options_.job;
    a.rank = options_.environment->rank;
    a.world_size = options_.environment->world_size;
    a.local_world_size = options_.environment->local_world_size;
    a.holders = options_.holders;
    a.directory = options_.directory;
    a.vault_directory = options_.vault_directory;
    a.deadline = options_.deadline;
    a.recover_deadline = options_.forming_deadline;
    a.persist_every = options_.persist_every;
    a.block_bytes = options_.block_bytes;
    a.when_busy = options_.when_busy;
    a.shared = options_.shared;
    a.pace = options_.pace;
    a.verify_source = options_.verify_source;
    a.observer = options_.observer;
    a.log = options_.log;
    a.fs = options_.file_system;
    return a;
  }
};

Checkpointer::Checkpointer(CheckpointerOptions options) {
  const Deadline deadline = Deadline::after(options.forming_deadline);
  impl_ = std::make_unique<Impl>(std::move(options), deadline);
}
Checkpointer::~Checkpointer() = default;

Recovered Checkpointer::recover(Dict& state) {
  Value value(state);  // a handle to the same dict
  return impl_->agent_.recover(value);
}

Staging Checkpointer::stage(const Dict& state, std::uint64_t step) {
  return impl_->agent_.stage(Value(state), step);
}

Checkpointer& Checkpointer::rejoin() {
  impl_->form(Deadline::after(impl_->options_.forming_deadline));
  return *this;
}

ProcessGroup& Checkpointer::group() {
  impl_->agent_.throw_if_lost();
  if (!impl_->generation_.training) throw InvalidState("group() outside a generation");
  return *impl_->generation_.training;
}

int Checkpointer::rank() const noexcept { return impl_->options_.environment->rank; }
int Checkpointer::world_size() const noexcept { return impl_->options_.environment->world_size; }
std::uint64_t Checkpointer::generation() const noexcept { return impl_->generation_.number; }
const std::string& Checkpointer::job() const noexcept { return impl_->options_.job; }
Stats Checkpointer::stats() const { return impl_->agent_.stats(); }
const std::vector<int>& Checkpointer::wards() const noexcept { return impl_->agent_.wards(); }
Replica Checkpointer::held(int ward, const NodeRegistry& registry) {
  return impl_->agent_.held(ward, registry);
}
void Checkpointer::finish() { impl_->agent_.finish(); }

}  // namespace meshstage
