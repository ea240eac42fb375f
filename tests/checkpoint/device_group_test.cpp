// The trainer's collectives on its device: Checkpointer::device_group(), on the fakes. Ranks are
// threads that share the fake device. (tools/gpu_check tries the same on a GPU, by drills.)
#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/comm/nccl_support.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/hanging_store.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/own_process.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
using namespace std::chrono_literals;
using ms::collectives::Element;
using ms::collectives::ReduceOp;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::Cuda;
using ms::test::InProcessJob;
using ms::test::Nccl;
using ms::test::require;
using ms::test::run_ranks;
using Clock = std::chrono::steady_clock;
using Numbers = std::array<std::int32_t, 500>;

constexpr int kWorld = 3;
constexpr std::uint64_t kSteps = 8;
/// The longest time that a survivor may take to leave, of the job's deadline of 20 s.
constexpr auto kBound = 10s;

/// A rank's gradient of a step.
Numbers gradient_of(int rank, std::uint64_t step) {
  Numbers numbers{};
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = static_cast<std::int32_t>((step + 1) * 10 + static_cast<std::uint64_t>(rank) * i);
  }
  return numbers;
}

/// The weights after so many steps.
Numbers weights_after(std::uint64_t steps) {
  Numbers weights{};
  for (std::uint64_t step = 0; step < steps; ++step) {
    for (int rank = 0; rank < kWorld; ++rank) {
      const auto gradient = gradient_of(rank, step);
      for (std::size_t i = 0; i < weights.size(); ++i) weights[i] += gradient[i];
    }
  }
  return weights;
}

/// A rank's trainer, all of whose tensors are on the device: adds the sum of all ranks' gradients.
class Trainer {
 public:
  Trainer(Cuda& cuda, int rank)
      : cuda_(cuda),
        rank_(rank),
        stream_(cuda.open_stream()),
        weights_(cuda.tensor(sizeof(Numbers))),
        gradient_(cuda.tensor(sizeof(Numbers))),
        state{{"weights", weights_}} {}
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;
  ~Trainer() {
    cuda_.synchronize(stream_);
    cuda_.close_stream(stream_);
  }
  [[nodiscard]] ms::TrainerStream where() const { return {Cuda::kDevice, stream_}; }
  /// `reduce` sums the gradient of all ranks in place.
  void train(std::uint64_t step, const std::function<void(std::span<std::byte>)>& reduce) {
    const auto mine = gradient_of(rank_, step);
    cuda_.write(gradient_, std::as_bytes(std::span(mine)));
    reduce(gradient_.storage().bytes());
    const auto sums = numbers(gradient_);
    auto weights = numbers(weights_);
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i] += sums[i];
    cuda_.write(weights_, std::as_bytes(std::span(weights)));
  }
  [[nodiscard]] Numbers weights() { return numbers(weights_); }

 private:
  [[nodiscard]] Numbers numbers(const ms::Tensor& tensor) {
    const auto bytes = cuda_.read(tensor);
    Numbers numbers{};
    std::memcpy(numbers.data(), bytes.data(), sizeof(numbers));
    return numbers;
  }
  Cuda& cuda_;
  const int rank_;
  const ms::StreamHandle stream_;
  const ms::Tensor weights_, gradient_;

 public:
  ms::Dict state;
};

ms::CheckpointerOptions options(InProcessJob& job, int rank, ms::TrainerStream where) {
  auto o = job.options(rank);
  o.persist_every = 0;
  o.streams = {where};
  o.device_group = where.device;
  return o;
}

void sum(ms::ProcessGroup& group, std::span<std::byte> gradient,
         ms::Deadline deadline = ms::Deadline::never()) {
  ms::collectives::all_reduce(group, gradient, Element::kI32, ReduceOp::kSum, deadline);
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

/// Threads and descriptors of the process, and bytes of the fake device.
struct Resources {
  int threads = ms::testing::count_threads();
  int descriptors = ms::testing::count_descriptors();
  std::size_t device_bytes = Cuda::fake().device_bytes();
  friend bool operator==(const Resources&, const Resources&) = default;
};

/// As before; a thread that was joined may be listed for a moment.
void settles_to(const Resources& before) {
  const auto after = ms::testing::settle([] { return Resources(); }, before, 10s);
  CHECK(after.threads == before.threads);
  CHECK(after.descriptors == before.descriptors);
  CHECK(after.device_bytes == before.device_bytes);
}

/// One fault in the middle of a collective: it is issued at all ranks, and the device holds it.
struct Fault {
  static constexpr int kVictim = 1;
  static constexpr std::uint64_t kStep = 5;

  explicit Fault(std::function<void(Fault&)> begin) : begin_(std::move(begin)) {}

  /// The collective of a rank's step; the first one of that step is disturbed.
  void reduce(int rank, std::uint64_t step, const std::shared_ptr<ms::ProcessGroup>& group,
              std::span<std::byte> gradient) {
    const bool now = step == kStep && !over;
    if (!now) return sum(*group, gradient);
    everyone_.arrive_and_wait();  // all are through with the step before
    std::thread disturber;
    if (rank == kVictim) {
      victims_group = group;
      disturber = std::thread([this] {
        while (Nccl::fake().issued() < kWorld) std::this_thread::yield();
        began = Clock::now();
        begin_(*this);
      });
    }
    std::string error;
    try {
      sum(*group, gradient);
    } catch (const std::exception& e) {
      error = e.what();
      if (disturber.joinable()) disturber.join();
      errors[static_cast<std::size_t>(rank)] = error;
      took[static_cast<std::size_t>(rank)] = Clock::now() - began.load();
      if (rank != kVictim) ++left;
      throw;
    }
    if (disturber.joinable()) disturber.join();
  }
  /// After a recovery.
  void end() {
    over = true;
    Nccl::fake().hold(false);
  }

  std::atomic<bool> over{false};
  std::atomic<Clock::time_point> began{};
  std::atomic<int> left{0};  // survivors
  std::shared_ptr<ms::ProcessGroup> victims_group;
  std::array<std::string, kWorld> errors;
  std::array<Clock::duration, kWorld> took{};

 private:
  struct Hold {
    void operator()() const noexcept { Nccl::fake().hold(true); }
  };
  const std::function<void(Fault&)> begin_;
  std::barrier<Hold> everyone_{kWorld, Hold()};
};

/// Trains to the end, by run(), as a process of the rank does. Returns false if it was killed, or
/// must end because it is to be replaced.
/// `store`: in the place of the job's.
bool train(Cuda& cuda, InProcessJob& job, int rank, Fault* fault, Numbers& weights,
           std::shared_ptr<ms::Store> store = nullptr) {
  Trainer trainer(cuda, rank);
  auto o = options(job, rank, trainer.where());
  if (store != nullptr) o.store_object = std::move(store);
  ms::Checkpointer ckpt(std::move(o));
  ms::RunOptions how{.stage_every = 2};
  how.recovered = [&](const ms::Recovered& recovered) {
    if (fault != nullptr && recovered.step > 0) fault->end();
  };
  const auto body = [&](ms::RunStep& step) {
    trainer.train(step.number(), [&](std::span<std::byte> gradient) {
      require(&step.device_group() == ckpt.device_group().get(), "two groups");
      if (fault == nullptr) return sum(step.device_group(), gradient);
      fault->reduce(rank, step.number(), ckpt.device_group(), gradient);
    });
  };
  try {
    require(ckpt.run(trainer.state, kSteps, body, how) == kSteps, "another number of steps");
  } catch (const ms::Cancelled&) {
    return false;
  } catch (const ms::Fenced&) {
    return false;
  }
  weights = trainer.weights();
  return true;
}

/// Trains with a fault to the end, where every rank has the right bits. The victim ends, and a
/// process in its place goes on behind `replaced`. `victims_store`: see train().
void train_through(Fault& fault, Nccl& nccl, InProcessJob& job,
                   const std::function<void()>& replaced,
                   const std::shared_ptr<ms::Store>& victims_store = nullptr) {
  std::array<Numbers, kWorld> weights{};
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    auto& mine = weights[static_cast<std::size_t>(rank)];
    const bool victim = rank == Fault::kVictim;
    if (train(nccl.cuda(), job, rank, &fault, mine, victim ? victims_store : nullptr)) return;
    require(victim, "another rank ended");
    replaced();
    require(train(nccl.cuda(), job, rank, &fault, mine), "its replacement ended, too");
  });
  INFO(job.log());
  all_good(errors);
  for (const auto& one : weights) CHECK(one == weights_after(kSteps));
  fault.victims_group.reset();
}

void survivors_say(const Fault& fault, const std::string& what) {
  for (const std::size_t survivor : {0U, 2U}) {
    INFO(fault.errors[survivor]);
    CHECK(fault.errors[survivor].starts_with(what));
    CHECK(fault.took[survivor] < kBound);
  }
}

}  // namespace

TEST_CASE("device group: a job averages its gradients on the device, and nothing is left") {
  const Resources before;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    Nccl nccl(seed);
    InProcessJob job(kWorld);
    std::array<Numbers, kWorld> weights{};
    const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
      train(nccl.cuda(), job, rank, nullptr, weights[static_cast<std::size_t>(rank)]);
    });
    INFO("seed " << seed << "\n" << job.log());
    all_good(errors);
    for (const auto& one : weights) CHECK(one == weights_after(kSteps));
  }
  settles_to(before);
}

TEST_CASE("device group: a rank dies in the middle of a collective, and every bit is right") {
  const Resources before;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    Nccl nccl(seed);
    InProcessJob job(kWorld);
    Fault kill([&](Fault& fault) {
      job.fabric().kill(Fault::kVictim);
      // What the process had goes with it; nobody hears of this.
      fault.victims_group->abort(std::make_exception_ptr(ms::Cancelled("killed")));
    });
    INFO("seed " << seed);
    train_through(kill, nccl, job, [&] { job.wipe(Fault::kVictim); });
    survivors_say(kill, "peer lost: rank 1");
  }
  settles_to(before);
}

TEST_CASE("device group: a rank hangs in the middle of a collective, and every bit is right") {
  const Resources before;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    Nccl nccl(seed);
    InProcessJob job(kWorld);
    // A process that hangs writes into no Store.
    const auto frozen = std::make_shared<ms::test::HangingStore>(job.store());
    Fault silence([&](Fault& fault) {
      frozen->hang();
      job.fabric().report_silent(Fault::kVictim);
      const auto noted = [&] {
        const auto keys = job.store()->list("in-process/", ms::Deadline::never());
        return std::any_of(keys.begin(), keys.end(),
                           [](const std::string& key) { return key.ends_with("/cause"); });
      };
      while (fault.left < kWorld - 1 || !noted()) std::this_thread::yield();
      frozen->go_on();
      fault.victims_group->abort(std::make_exception_ptr(ms::Cancelled("killed at last")));
    });
    INFO("seed " << seed);
    train_through(silence, nccl, job, [] {}, frozen);
    survivors_say(silence, "peer silent: rank 1");
  }
  settles_to(before);
}

TEST_CASE("device group: one that nobody completes ends by the job's deadline") {
  Nccl nccl;
  InProcessJob job(2);
  std::atomic<bool> left{false};
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    Trainer trainer(nccl.cuda(), rank);
    auto o = options(job, rank, trainer.where());
    o.deadline = 100ms;
    const ms::Checkpointer ckpt(std::move(o));
    if (rank == 1) {  // lives, and never comes
      while (!left) std::this_thread::yield();
      return;
    }
    const auto began = Clock::now();
    const auto error = error_of([&] {
      trainer.train(0, [&](std::span<std::byte> gradient) { sum(*ckpt.device_group(), gradient); });
    });
    left = true;
    require(error.starts_with("peer silent: "), "it ended by: " + error);
    require(Clock::now() - began < kBound, "too late");
  }));
}

TEST_CASE("device group: each generation has its own, and those before are closed") {
  Nccl nccl;
  InProcessJob job(2);
  std::barrier both(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    Trainer trainer(nccl.cuda(), rank);
    ms::Checkpointer ckpt(options(job, rank, trainer.where()));
    (void)ckpt.recover(trainer.state);
    const auto first = ckpt.device_group();
    require(first->size() == 2 && first->linked(1 - rank), "another group");
    const auto use = [&](ms::ProcessGroup& group) {
      return error_of(
          [&] { trainer.train(0, [&](std::span<std::byte> bytes) { sum(group, bytes); }); });
    };
    const auto error = use(*first);
    both.arrive_and_wait();  // a rank that leaves ends the group
    require(error.empty(), "the first fails: " + error);
    (void)ckpt.rejoin().recover(trainer.state);
    require(!use(*first).empty(), "the first still works");
    const auto second = ckpt.device_group();
    require(second != first && use(*second).empty(), "the second fails");
    both.arrive_and_wait();
    ckpt.finish();
    require(!use(*second).empty(), "the second still works");
    require(
        error_of([&] { (void)ckpt.device_group(); }).find("after finish()") != std::string::npos,
        "there is one after finish()");
  }));
  CHECK(Nccl::fake().communicators() == 0);
}

TEST_CASE("device group: without the option there is none; what cannot be had is refused") {
  const Nccl nccl;
  InProcessJob job(1);
  const auto refused = [&](std::optional<ms::Device> device) {
    auto o = job.options(0);
    o.device_group = device;
    return error_of([&] { const ms::Checkpointer ckpt(std::move(o)); });
  };
  {
    const ms::Checkpointer ckpt(job.options(0));
    CHECK_THROWS_WITH(ckpt.device_group(), contains_text("CheckpointerOptions::device_group"));
  }
  CHECK_THAT(refused(ms::kCpu), contains_text("invalid argument: ") &&
                                    contains_text("device_group cpu") &&
                                    contains_text("group() is for host memory"));
  const ms::Device ninth{ms::DeviceType::kCuda, 9};
  CHECK_THAT(refused(ninth), contains_text("invalid state: ") &&
                                 contains_text("device_group cuda:9 cannot be used: ") &&
                                 contains_text("devices, counted from 0"));
  CHECK(refused(Cuda::kDevice).empty());
}

TEST_CASE("device group: ranks of which one alone has the option are refused") {
  Nccl nccl;
  InProcessJob job(2);
  const auto errors = run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    o.forming_deadline = 2s;
    if (rank == 1) o.device_group = Cuda::kDevice;
    const ms::Checkpointer ckpt(std::move(o));
  });
  // Whichever came second is told what both have; nobody came to the other one.
  const std::string both = errors[0] + " | " + errors[1];
  INFO(both);
  CHECK(both.find("invalid state: ") != std::string::npos);
  CHECK(both.find("a device group over NCCL") != std::string::npos);
  CHECK_FALSE(errors[0].empty());
  CHECK_FALSE(errors[1].empty());
}
