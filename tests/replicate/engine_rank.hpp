// One rank of a job: its engine alone, without the Checkpointer, so that a test sees the engine's
// tasks.
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/replicate/agent.hpp>
#include <meshstage/core/replicate/agreement.hpp>

#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"

namespace meshstage::test {

/// Forms a generation, recovers nothing, and stages step 0.
/// Threads: one caller, the rank's.
class EngineRank {
 public:
  explicit EngineRank(const CheckpointerOptions& o, replicate::TaskObserver on_task = {})
      : rank_(o.environment->rank), membership_(place_of(o)) {
    const Deadline deadline = Deadline::after(o.forming_deadline);
    agent_.emplace(o, o.store_object, membership_.enter(0, deadline), std::move(on_task));
    agent_->begin(membership_.form(agent_->highest_generation(), deadline));
  }
  /// The trainer's first recover().
  void recover_nothing() {
    Value state(state_of(rank_, 0));
    require(!agent_->recover(state).id.exists(), "something was recovered");
    require(agent_->stage(state, 0).outcome().get(in_time()) == Outcome::kComplete,
            "step 0 failed");
  }
  Staging stage(std::uint64_t step) { return agent_->stage(Value(state_of(rank_, step)), step); }
  Outcome stage_one(std::uint64_t step) { return stage(step).outcome().get(in_time()); }
  [[nodiscard]] static Deadline in_time() { return Deadline::after(std::chrono::seconds(20)); }
  Agent& operator*() { return *agent_; }
  Agent* operator->() { return &*agent_; }

 private:
  static MembershipOptions place_of(const CheckpointerOptions& o) {
    MembershipOptions place;
    place.job = o.job;
    place.rank = o.environment->rank;
    place.world_size = o.environment->world_size;
    place.store = o.store_object;
    place.transport = o.transport;
    place.data_peers = replicate::data_peers(o);
    place.agreement = replicate::agreement(o);
    return place;
  }
  const int rank_;
  Membership membership_;
  std::optional<Agent> agent_;
};

}  // namespace meshstage::test
