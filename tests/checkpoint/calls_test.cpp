// Every public call at every time: it does its work, or throws at once an error that says what to
// do first. No call waits for what cannot come, and none ends the process.
#include <atomic>
#include <barrier>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/tree/node.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"

namespace {

namespace ms = meshstage;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::InProcessJob;
using ms::test::recover_to;
using ms::test::require;
using ms::test::run_ranks;
using ms::test::stage_all;
using ms::test::state_of;

/// Far below the forming deadline of in-process jobs, for which a call would wait in vain.
constexpr std::chrono::seconds kAtOnce(15);

struct Call {
  std::string name;
  std::function<void(ms::Checkpointer&)> make;
};

void recover(ms::Checkpointer& ckpt) {
  ms::Dict state = state_of(ckpt.rank(), 0);
  (void)ckpt.recover(state);
}

std::vector<Call> calls() {
  return {
      {"stage()", [](auto& ckpt) { (void)ckpt.stage(state_of(ckpt.rank(), 90), 90); }},
      {"held()", [](auto& ckpt) { (void)ckpt.held(1 - ckpt.rank()); }},
      {"finish()", [](auto& ckpt) { ckpt.finish(); }},
      {"group()", [](auto& ckpt) { (void)ckpt.group(); }},
      {"recover()", recover},
      {"run()",
       [](auto& ckpt) {
         ms::Dict state = state_of(ckpt.rank(), 0);
         (void)ckpt.run(state, 5, [](ms::RunStep&) {});
       }},
      {"persist_now()", [](auto& ckpt) { ckpt.persist_now(); }},
      {"request_termination()", [](auto& ckpt) { ckpt.request_termination(); }},
      {"ending()", [](auto& ckpt) { (void)ckpt.ending(); }},
      {"stats()", [](auto& ckpt) { (void)ckpt.stats(); }},
      {"rank() and its like",
       [](auto& ckpt) {
         (void)ckpt.rank();
         (void)ckpt.world_size();
         (void)ckpt.generation();
         (void)ckpt.job();
         (void)ckpt.wards();
       }},
  };
}

const std::string kReturns = "returned";
const std::string kNotCalled = "not called";

/// A part of what comes of each call that throws, in the order of calls(). The calls that never
/// throw are not in it.
struct Expected {
  std::string stage, held, finish, group, recover, run;
};

Expected all(const std::string& text) { return {text, text, text, text, text, text}; }

/// The calls that did not end as expected or in time, with what came of them; "" if all did.
std::string surprises(ms::Checkpointer& ckpt, const Expected& expected) {
  const std::vector<std::string> parts{expected.stage, expected.held,    expected.finish,
                                       expected.group, expected.recover, expected.run};
  std::string found;
  std::size_t at = 0;
  for (const Call& call : calls()) {
    const std::string part = at < parts.size() ? parts[at] : kReturns;
    ++at;
    if (part == kNotCalled) continue;
    const auto deadline = ms::Deadline::after(kAtOnce);
    std::string result = kReturns;
    try {
      call.make(ckpt);
    } catch (const std::exception& e) {
      result = std::string("threw: ") + e.what();
    }
    if (deadline.expired()) result += ", late";
    if (result.ends_with(", late") || result.find(part) == std::string::npos) {
      found += call.name + " " + result + "; ";
    }
  }
  return found;
}

/// Waits for the Staging's three results; each may be an error. "" if none came late.
std::string settle(ms::Staging& staging) {
  std::string found;
  const auto wait = [&](const char* name, auto& work) {
    try {
      work.wait(ms::Deadline::after(kAtOnce));
    } catch (const ms::Timeout&) {
      found += std::string(name) + " never ends; ";
    } catch (const ms::Error&) {  // NOLINT(bugprone-empty-catch): what it is, others test
    }
  };
  wait("staged()", staging.staged());
  wait("outcome()", staging.outcome());
  wait("persisted()", staging.persisted());
  return found;
}

/// Its assign() throws while `armed`: a restoring that fails in the user's code.
class Mine final : public ms::Node {
 public:
  Mine(ms::Value count, std::atomic<bool>& armed) : count_(std::move(count)), armed_(armed) {}
  [[nodiscard]] std::string type_name() const override { return "test.Mine"; }
  [[nodiscard]] std::vector<Child> children() const override { return {{"count", count_}}; }
  [[nodiscard]] ms::NodePtr rebuild(std::vector<ms::Value> children) const override {
    return std::make_shared<Mine>(children[0], armed_);
  }
  bool assign(const std::vector<ms::Value>& children) override {
    if (armed_.exchange(false)) throw std::runtime_error("the mine went off");
    count_ = children[0];
    return true;
  }

 private:
  ms::Value count_;
  std::atomic<bool>& armed_;
};

}  // namespace

TEST_CASE("before recover(), calls that need it say so at once") {
  const int world = GENERATE(2, 1);
  InProcessJob job(world);
  std::barrier everyone(world);
  all_good(run_ranks(all_ranks(world), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    const Expected expected{"stage() before recover()",
                            world == 1 ? "holds none" : "held() before recover()",
                            "finish() before recover()",
                            kReturns,
                            kNotCalled,
                            kNotCalled};
    std::string found = surprises(ckpt, expected);
    everyone.arrive_and_wait();
    ckpt.rejoin();  // and the same in the next generation
    found += surprises(ckpt, expected);
    everyone.arrive_and_wait();
    require(found.empty(), found);
    (void)recover_to(ckpt, 0);  // nothing has come of it
    stage_all(ckpt, {1, 2});
    ckpt.finish();
  }));
  CHECK(job.disk().list("/vault").empty());
}

TEST_CASE("a rank that calls finish() before recover() is refused, and the others are not held") {
  InProcessJob job(2);
  const int early = GENERATE(0, 1);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    std::optional<ms::Checkpointer> ckpt(std::in_place, job.options(rank));
    if (rank == early) {
      const std::string found = surprises(
          *ckpt,
          {kNotCalled, kNotCalled, "finish() before recover()", kReturns, kNotCalled, kNotCalled});
      ckpt.reset();  // as its program ends by the error
      require(found.empty(), found);
      ckpt.emplace(job.options(rank));
    } else {
      bool left = false;
      try {
        recover(*ckpt);
      } catch (const ms::PeerLost& e) {
        left = e.rank() == early;
      }
      require(left, "recover() did not tell that the other rank left");
      ckpt->rejoin();
    }
    (void)recover_to(*ckpt, 0);
    stage_all(*ckpt, {1});
    ckpt->finish();
  }));
}

TEST_CASE("after finish(), calls that need a job say so at once") {
  const int world = GENERATE(2, 1);
  InProcessJob job(world);
  all_good(run_ranks(all_ranks(world), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    const auto group = ckpt.group();
    ckpt.finish();
    Expected expected = all("after finish()");
    expected.finish = kReturns;
    if (world == 1) expected.held = "holds none";
    std::string found = surprises(ckpt, expected);
    try {
      ckpt.rejoin();
      found += "rejoin() returned; ";
    } catch (const ms::InvalidState&) {  // NOLINT(bugprone-empty-catch): as it should
    }
    if (world == 2) {  // as the header says of a group from before
      std::byte byte{};
      try {
        group->receive(1 - rank, 0, {&byte, 1})->wait(ms::Deadline::after(kAtOnce));
        found += "the group goes on; ";
      } catch (const ms::PeerSilent&) {
        found += "the group waits; ";
      } catch (const ms::Error&) {  // NOLINT(bugprone-empty-catch): as it should
      }
    }
    require(found.empty(), found);
  }));
}

TEST_CASE("after a loss, calls throw it at once until rejoin()") {
  InProcessJob job(2);
  std::barrier everyone(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    std::optional<ms::Checkpointer> ckpt(std::in_place, job.options(rank));
    (void)recover_to(*ckpt, 0);
    stage_all(*ckpt, {1});
    everyone.arrive_and_wait();
    std::string found;
    if (rank == 1) {
      ckpt.reset();
      everyone.arrive_and_wait();
      ckpt.emplace(job.options(rank));
    } else {
      // A rank that leaves votes no on what it was receiving, perhaps before its links end: a step
      // may fail before the loss is known.
      const auto by = ms::Deadline::after(kAtOnce);
      bool lost = false;
      for (std::uint64_t step = 2; !lost && !by.expired(); ++step) {
        try {
          auto staging = ckpt->stage(state_of(rank, step), step);
          found += settle(staging);
        } catch (const ms::PeerLost&) {
          lost = true;
        }
      }
      Expected expected = all("rank 1");
      expected.run = kNotCalled;  // it rejoins by itself
      expected.recover = "rejoin()";
      found += surprises(*ckpt, expected);
      everyone.arrive_and_wait();
      ckpt->rejoin();
    }
    (void)recover_to(*ckpt, 1);
    ckpt->finish();
    require(found.empty(), found);
  }));
}

TEST_CASE("after a rejoin() that failed, calls throw its error at once until one succeeds") {
  InProcessJob job(2);
  std::barrier everyone(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto o = job.options(rank);
    if (rank == 0) o.forming_deadline = std::chrono::milliseconds(500);
    std::optional<ms::Checkpointer> ckpt;
    while (!ckpt) try {
        ckpt.emplace(o);
      } catch (const ms::Timeout&) {  // NOLINT(bugprone-empty-catch): rank 1 was slow
      }
    everyone.arrive_and_wait();
    std::string found;
    if (rank == 1) {
      ckpt.reset();
      everyone.arrive_and_wait();
      ckpt.emplace(job.options(rank));
    } else {
      try {
        ckpt->rejoin();
        found = "rejoin() without the other rank; ";
      } catch (const ms::Timeout&) {
        found = surprises(*ckpt, all("rank"));
      }
      everyone.arrive_and_wait();
      while (true) try {
          ckpt->rejoin();
          break;
        } catch (const ms::Timeout&) {  // NOLINT(bugprone-empty-catch): rank 1 was slow
        }
    }
    (void)recover_to(*ckpt, 0);
    require(found.empty(), found);
    everyone.arrive_and_wait();
  }));
}

TEST_CASE("after a recover() that threw, calls say so at once until rejoin()") {
  InProcessJob job(2);
  std::barrier everyone(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    everyone.arrive_and_wait();
    ckpt.rejoin();
    std::string found;
    try {
      ms::Dict other = state_of(rank, 0, 1000);
      (void)ckpt.recover(other);
      found = "recovered another structure; ";
    } catch (const ms::StructureMismatch&) {
      found = surprises(ckpt, all("model.weight"));
    }
    everyone.arrive_and_wait();
    ckpt.rejoin();
    (void)recover_to(ckpt, 1);
    everyone.arrive_and_wait();
    require(found.empty(), found);
  }));
}

TEST_CASE("after a recover() that the user's code ended, the next one says so at once") {
  InProcessJob job(1);
  std::atomic<bool> armed{false};
  const auto state = [&](std::int64_t count) {
    return ms::Dict{{"mine", ms::NodePtr(std::make_shared<Mine>(count, armed))}};
  };
  ms::Checkpointer ckpt(job.options(0));
  ms::Dict first = state(0);
  (void)ckpt.recover(first);
  auto staging = ckpt.stage(state(7), 1);
  REQUIRE(staging.outcome().get() == ms::Outcome::kComplete);
  ckpt.rejoin();
  armed = true;
  ms::Dict second = state(0);
  CHECK_THROWS_AS(ckpt.recover(second), std::runtime_error);
  CHECK(surprises(ckpt, {"before recover()", "holds none", "before recover()", kReturns,
                         "rejoin() before the next recover()",
                         "rejoin() before the next recover()"}) == "");
  ckpt.rejoin();
  CHECK(ckpt.recover(second).step == 1);
}

TEST_CASE("a Checkpointer ends without finish() at any time, and what waits for it ends") {
  const std::string when = GENERATE("at once", "after recover()", "in a step", "after a loss");
  INFO(when);
  InProcessJob job(2);
  std::barrier everyone(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    const auto begun = ms::Deadline::after(kAtOnce);
    ms::Staging staging;
    {
      std::optional<ms::Checkpointer> ckpt(std::in_place, job.options(rank));
      if (when != "at once") (void)recover_to(*ckpt, 0);
      everyone.arrive_and_wait();
      if (rank == 0 || when != "after a loss") {
        try {
          if (when == "in a step" && rank == 0) staging = ckpt->stage(state_of(rank, 1), 1);
        } catch (const ms::PeerLost&) {  // NOLINT(bugprone-empty-catch): rank 1 was faster
        }
        ckpt.reset();
        everyone.arrive_and_wait();
      } else {
        everyone.arrive_and_wait();
        try {
          while (true) (void)ckpt->held(1 - rank);
        } catch (const ms::RejoinNeeded&) {
          ckpt.reset();
        }
      }
    }
    const std::string found = settle(staging);
    require(found.empty() && !begun.expired(), found + (begun.expired() ? "late" : ""));
  }));
}

TEST_CASE("a constructor that throws leaves nothing behind that the next one waits for") {
  InProcessJob job(2);
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    const auto begun = ms::Deadline::after(kAtOnce);
    const auto refused = [&](const char* what, ms::CheckpointerOptions o) {
      try {
        const ms::Checkpointer ckpt(std::move(o));
      } catch (const ms::Error&) {
        return;
      }
      ms::test::fail_test(std::string("not refused: ") + what);
    };
    auto o = job.options(rank);
    o.keep = 0;
    refused("senseless options", o);
    o = job.options(rank);
    o.environment->world_size = 3;
    o.forming_deadline = std::chrono::milliseconds(300);
    refused("a job without its third rank", o);
    ms::Checkpointer ckpt(job.options(rank));
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    ckpt.finish();
    require(!begun.expired(), "late");
  }));
}
