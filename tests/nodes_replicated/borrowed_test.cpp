// Replicas borrow what a rank in another failure domain has too; a lost rank gets it from there,
// and nobody's word is taken for it.
#include <algorithm>
#include <atomic>
#include <sstream>

#include <meshstage/dtensor/borrowed_tensors.hpp>
#include <meshstage/dtensor/node.hpp>

#include "tests/nodes_replicated/sharded_job.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/rank_errors.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

constexpr int kWorld = 4;
const std::vector<std::string> kSame(kWorld);
const std::vector<std::vector<int>> kRing{{1}, {2}, {3}, {0}};

const DeviceMesh& mesh() {
  static const DeviceMesh kMesh = DeviceMesh::from_shape({2, 2}, {"dp", "tp"});
  return kMesh;
}

Dict state_of(int rank, std::uint64_t step) {
  const auto s = static_cast<double>(step);
  const auto from = [&](const Shape& shape, double first, const char* placements) {
    return dtensor::to_value(
        DTensor::from_full(ramp(shape, first + s), mesh(), rank, parse_placements(placements)));
  };
  return Dict{
      {"everywhere", from({64, 64}, 1, "R,R")},   {"along dp", from({64, 64}, 2, "R,S(1)")},
      {"along tp", from({64, 64}, 3, "S(0),R")},  {"small", from({3}, 4, "R,R")},
      {"plain", ramp({5000}, 1000.0 * rank + s)}, {"step", static_cast<std::int64_t>(step)}};
}

NodeRegistry dtensors(int) {
  NodeRegistry registry;
  dtensor::register_nodes(registry, mesh());
  return registry;
}

using Change = std::function<void(CheckpointerOptions&)>;

// Hosts of two: rank r's holder, r + 2, has what is replicated along dp; along tp there is no other
// host.
constexpr std::uint64_t kDpBytes = std::uint64_t{64} * 64 * 4 + std::uint64_t{64} * 32 * 4;
void on_two_hosts(CheckpointerOptions& o) {
  o.borrowed = dtensor::borrowed_tensors(mesh(), FailureDomains::uniform(kWorld, 2));
}
// Each rank alone: what is replicated along tp is left to the neighbour in that dimension.
constexpr std::uint64_t kAllBytes = kDpBytes + std::uint64_t{32} * 64 * 4;
void on_four_hosts(CheckpointerOptions& o) {
  o.borrowed = dtensor::borrowed_tensors(mesh(), FailureDomains::uniform(kWorld, 1));
}
// The same with holders that borrow nothing along dp.
void in_a_ring(CheckpointerOptions& o) {
  on_four_hosts(o);
  o.holders = kRing;
}

/// A job that stages some steps and ends without finish(): memory stays. Element r: rank r's stats.
std::vector<Stats> run_to(InProcessJob& job, std::uint64_t steps, const Change& change,
                          std::vector<std::vector<Outcome>>* outcomes = nullptr) {
  std::vector<Stats> stats(kWorld);
  std::vector<std::unique_ptr<Checkpointer>> stay(kWorld);
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    auto o = job.options(rank);
    o.persist_every = 0;
    change(o);
    stay[r] = std::make_unique<Checkpointer>(o);
    Dict state = state_of(rank, 0);
    while (true) {
      try {
        (void)stay[r]->recover(state);
        break;
      } catch (const RejoinNeeded&) {  // step 0 failed
        (void)stay[r]->rejoin();
      }
    }
    for (std::uint64_t step = 1; step <= steps; ++step) {
      const auto outcome = stay[r]->stage(state_of(rank, step), step).outcome().get(in_time());
      if (outcomes != nullptr) {
        (*outcomes)[r].push_back(outcome);
      } else {
        require(outcome == Outcome::kComplete, "step " + std::to_string(step) + " failed");
      }
    }
    stats[r] = stay[r]->stats();
  });
  for (const auto& error : errors) {
    require(error.empty(), error);
  }
  return stats;
}

/// What was logged, but for the two lines that are not worth a warning.
std::string warnings(InProcessJob& job) {
  std::istringstream lines(job.log());
  std::string line, found;
  while (std::getline(lines, line)) {
    const bool harmless =
        line.find(": ignored: ") != std::string::npos ||
        line.find("was not sent: cancelled: the generation was left") != std::string::npos;
    if (!harmless) found += line + "\n";
  }
  return found;
}

/// What every rank's recovery throws; they must all throw the same kind.
std::vector<std::string> refusals(InProcessJob& job, const Change& change) {
  std::vector<std::string> errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    auto o = job.options(rank);
    o.persist_every = 0;
    change(o);
    Checkpointer ckpt(o);
    Dict state = state_of(rank, 0);
    (void)ckpt.recover(state);
  });
  return errors;
}

}  // namespace

TEST_CASE("Replicas borrow what another host has, on the wire and in memory") {
  const auto check = [](const Change& change, std::uint64_t borrowed) {
    InProcessJob whole_job(kWorld), job(kWorld);
    const auto whole = run_to(whole_job, 4, [](CheckpointerOptions&) {});
    const auto stats = run_to(job, 4, change);
    for (std::size_t r = 0; r < kWorld; ++r) {
      INFO("rank " << r);
      CHECK(stats[r].replica_bytes_borrowed == 5 * borrowed);  // of steps 0 to 4
      CHECK(whole[r].replica_bytes_borrowed == 0);
      // Two replicas in each vault, each without what is borrowed; own images say a little more.
      CHECK(stats[r].vault_bytes + 2 * borrowed <= whole[r].vault_bytes + 2 * 4096);
      CHECK(stats[r].replica_bytes_sent + 5 * borrowed <= 5 * stats[r].image_bytes);
      CHECK(stats[r].failed == 0);
    }
  };
  check(on_two_hosts, kDpBytes);
  check(on_four_hosts, kAllBytes);
  check(in_a_ring, kAllBytes);
}

TEST_CASE("Any one rank that lost its memory is put together again, whoever has its tensors") {
  for (const Change& change : {Change(on_two_hosts), Change(on_four_hosts), Change(in_a_ring)}) {
    for (int lost = 0; lost < kWorld; ++lost) {
      INFO("rank " << lost);
      InProcessJob job(kWorld);
      (void)run_to(job, 3, change);
      job.wipe(lost);
      std::vector<Source> sources;
      CHECK(recover_on_all(job, state_of, 3, sources, change) == kSame);
      CHECK(sources[static_cast<std::size_t>(lost)] == Source::kHolderMemory);
      CHECK(warnings(job) == "");
    }
  }
}

TEST_CASE("Redundancy is whole again after a recovery: the next loss is survived, too") {
  InProcessJob job(kWorld);
  (void)run_to(job, 2, in_a_ring);
  for (const int lost : {2, 1, 3, 0}) {
    INFO("rank " << lost);
    job.wipe(lost);
    // Nothing is staged in between: what the recovery restored must suffice.
    std::vector<std::string> different(kWorld);
    std::vector<std::unique_ptr<Checkpointer>> stay(kWorld);
    const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
      auto o = job.options(rank);
      in_a_ring(o);
      auto& ckpt = stay[static_cast<std::size_t>(rank)];
      ckpt = std::make_unique<Checkpointer>(o);
      Dict state = state_of(rank, 0);
      (void)ckpt->recover(state);
      different[static_cast<std::size_t>(rank)] = difference(state, state_of(rank, 2));
    });
    for (const auto& error : errors) CHECK(error == "");
    CHECK(different == kSame);
  }
}

TEST_CASE("A rank and one of its lenders lost together are refused by name") {
  InProcessJob job(kWorld);
  (void)run_to(job, 3, in_a_ring);
  job.wipe(0);
  job.wipe(2);  // has what rank 0 has along dp; rank 0's holder, rank 1, stays
  for (const auto& error : refusals(job, in_a_ring)) {
    CHECK_THAT(error, Contains("no step has an image of every rank any more"));
    CHECK_THAT(error, Contains("rank 0 2"));
  }
}

TEST_CASE("Files stand alone: a replica that leaves something out is not written") {
  InProcessJob job(kWorld);
  const Change persisted = [](CheckpointerOptions& o) {
    in_a_ring(o);
    o.persist_every = 1;
  };
  std::vector<std::unique_ptr<Checkpointer>> stay(kWorld);
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    auto o = job.options(rank);
    persisted(o);
    auto& ckpt = stay[static_cast<std::size_t>(rank)];
    ckpt = std::make_unique<Checkpointer>(o);
    Dict state = state_of(rank, 0);
    (void)ckpt->recover(state);
    for (std::uint64_t step = 1; step <= 2; ++step) {
      const auto disk = ckpt->stage(state_of(rank, step), step).persisted().get(in_time());
      require(disk == DiskOutcome::kEverywhere, "not on every rank's disk");
    }
  });
  for (const auto& error : errors) CHECK(error == "");
  stay.clear();
  for (const auto& name : job.disk().list("/disk")) {
    INFO(name);
    CHECK(name.find("-holder") == std::string::npos);
  }
  for (int rank = 0; rank < kWorld; ++rank) job.wipe(rank);
  std::vector<Source> sources;
  CHECK(recover_on_all(job, state_of, 2, sources, persisted) == kSame);
  CHECK(sources == std::vector<Source>(kWorld, Source::kDisk));
  CHECK(warnings(job) == "");
}

TEST_CASE("What a holder has is looked at whole where it has the rest, else refused by name") {
  const auto held_by_all = [](const Change& change) {
    InProcessJob job(kWorld);
    return stage_on_all(job, state_of, dtensors, {1, 2}, change);
  };
  for (const auto& replicas : held_by_all(on_two_hosts)) {
    CHECK(difference(state_of(replicas.at(0).owner, 2), replicas.at(0).state) == "");
    CHECK(replicas.at(0).id.step == 2);
  }
  CHECK_THROWS_WITH(held_by_all(in_a_ring),
                    Contains("borrows") && Contains("only a recovery puts them together"));
}

TEST_CASE("What is said to be the same and is not fails a step, then is left in") {
  InProcessJob job(kWorld);
  // Rank 0's "plain" is said to be rank 2's, too.
  const Change lying = [](CheckpointerOptions& o) {
    on_two_hosts(o);
    o.borrowed.paths = [honest = o.borrowed.paths](const Value& state, int owner, int at) {
      auto paths = honest(state, owner, at);
      if (owner == 0 && at == 2) paths.emplace_back("plain");
      return paths;
    };
  };
  std::vector<std::vector<Outcome>> outcomes(kWorld);
  const auto stats = run_to(job, 4, lying, &outcomes);
  const auto good = Outcome::kComplete;
  for (const auto& seen : outcomes) {
    // Step 0 failed, and all began once more; what failed it is left in by then.
    CHECK(seen == std::vector<Outcome>(4, good));
  }
  // The others go on as before. Whether they still send the step that fails is a race.
  CHECK(stats[1].replica_bytes_borrowed >= 2 * kDpBytes);
  CHECK(stats[0].replica_bytes_borrowed <= 2 * (kDpBytes + 5000 * 4 + 4096));
  CHECK_THAT(job.log(), Contains("rank 2 has other bytes than this rank in tensors"));
  job.wipe(0);
  std::vector<Source> sources;
  CHECK(recover_on_all(job, state_of, 4, sources, lying) == kSame);
}

TEST_CASE(
    "A job that comes back borrowing nothing recovers what needs nobody else, or says why not") {
  const Change apart = [](CheckpointerOptions& o) { o.holders = kRing; };
  {
    InProcessJob job(kWorld);
    (void)run_to(job, 3, in_a_ring);
    // Nothing is fetched: replicas without a lender stay where they are.
    std::atomic<int> fetches{0};
    std::vector<std::unique_ptr<Checkpointer>> stay(kWorld);
    const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
      auto o = job.options(rank);
      apart(o);
      o.observer = [&](const PointEvent& e) {
        if (e.point == Point::kFetchStarted) ++fetches;
      };
      auto& ckpt = stay[static_cast<std::size_t>(rank)];
      ckpt = std::make_unique<Checkpointer>(o);
      Dict state = state_of(rank, 0);
      require(ckpt->recover(state).step == 3, "another step");
    });
    for (const auto& error : errors) CHECK(error == "");
    CHECK(fetches == 0);
    stay.clear();
    std::vector<Source> sources;
    CHECK(recover_on_all(job, state_of, 3, sources, apart) == kSame);
  }
  InProcessJob job(kWorld);
  (void)run_to(job, 3, in_a_ring);
  job.wipe(0);
  for (const auto& error : refusals(job, apart)) {
    CHECK_THAT(error, Contains("no longer its lender"));
  }
  std::vector<Source> sources;  // nothing is lost: with the options of before it works
  CHECK(recover_on_all(job, state_of, 3, sources, in_a_ring) == kSame);
}

TEST_CASE("Ranks whose lenders differ do not form") {
  InProcessJob job(kWorld);
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    auto o = job.options(rank);
    o.forming_deadline = std::chrono::milliseconds(500);  // how long the others wait in vain
    rank == 3 ? on_two_hosts(o) : on_four_hosts(o);
    const Checkpointer ckpt(o);
  });
  // The second rank to publish its options finds those of the first.
  CHECK(std::none_of(errors.begin(), errors.end(), [](const auto& e) { return e.empty(); }));
  CHECK(std::any_of(errors.begin(), errors.end(), [](const std::string& e) {
    return e.find(", lenders ") != std::string::npos;
  }));
}
