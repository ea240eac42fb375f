// What the mesh already replicates does not travel, and nobody's word is taken for it.
#include <algorithm>
#include <atomic>
#include <future>

#include <meshstage/dtensor/node.hpp>

#include "tests/replication/sharded_job.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

constexpr int kWorld = 4;
constexpr std::uint64_t kTwinBytes = std::uint64_t{64} * 64 * 4 + std::uint64_t{64} * 32 * 4;
const std::vector<std::string> kSame(kWorld);

const DeviceMesh& mesh() {
  static const DeviceMesh kMesh = DeviceMesh::from_shape({2, 2}, {"dp", "tp"});
  return kMesh;
}

Tensor ramp(const Shape& shape, double first) {
  const auto tensor = Tensor::empty(shape, DType::kF32);
  float* data = tensor.data<float>();
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    data[i] = static_cast<float>(first) + static_cast<float>(i) / 1024.0F;
  }
  return tensor;
}

// A rank's holder, rank (r + 2) mod 4, has another coordinate in "dp" and the same in "tp".
Dict state_of(int rank, std::uint64_t step) {
  const auto s = static_cast<double>(step);
  const auto from = [&](const Shape& shape, double first, const char* placements) {
    return dtensor::to_value(
        DTensor::from_full(ramp(shape, first + s), mesh(), rank, parse_placements(placements)));
  };
  return Dict{
      {"everywhere", from({64, 64}, 1, "R,R")},   {"along dp", from({64, 64}, 2, "R,S(1)")},
      {"cut", from({64, 64}, 3, "S(0),R")},       {"small", from({3}, 4, "R,R")},
      {"plain", ramp({5000}, 1000.0 * rank + s)}, {"step", static_cast<std::int64_t>(step)}};
}

NodeRegistry dtensors(int) {
  NodeRegistry registry;
  dtensor::register_nodes(registry, mesh());
  return registry;
}

void with_twins(CheckpointerOptions& o) { o.twins = dtensor::twins; }

std::vector<std::string> differences(const std::vector<std::vector<Replica>>& held,
                                     std::uint64_t step) {
  std::vector<std::string> different;
  for (std::size_t rank = 0; rank < held.size(); ++rank) {
    const auto& replica = held[rank].at(0);
    different.push_back(difference(state_of(replica.owner, step), replica.state));
    if (replica.id.step != step) different.back() += " step " + std::to_string(replica.id.step);
  }
  return different;
}

}  // namespace

TEST_CASE("A tensor that the holder has too does not travel, and is recovered all the same") {
  InProcessJob job(kWorld);
  std::vector<Stats> stats(kWorld);
  // Each of both slots travels whole once: the manifest in it says where things are.
  std::vector<std::unique_ptr<Checkpointer>> stay(kWorld);
  std::vector<std::vector<Replica>> held(kWorld);
  std::vector<std::vector<std::uint64_t>> spared(kWorld);
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    auto o = job.options(rank);
    with_twins(o);
    stay[r] = std::make_unique<Checkpointer>(o);
    Dict state = state_of(rank, 0);
    (void)stay[r]->recover(state);
    for (std::uint64_t step = 1; step <= 6; ++step) {
      stage_and_wait(*stay[r], state_of(rank, step), step);
      spared[r].push_back(stay[r]->stats().replica_bytes_spared);
    }
    held[r].push_back(stay[r]->held((rank + 2) % kWorld, dtensors(rank)));
    stats[r] = stay[r]->stats();
  });
  for (const auto& error : errors) CHECK(error == "");
  for (int rank = 0; rank < kWorld; ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    INFO("rank " << rank);
    CHECK(spared[r] == std::vector<std::uint64_t>{0, 0, kTwinBytes, 2 * kTwinBytes, 3 * kTwinBytes,
                                                  4 * kTwinBytes});
    CHECK(stats[r].replica_bytes_sent + stats[r].replica_bytes_spared <= 6 * stats[r].image_bytes);
    CHECK(stats[r].replica_bytes_sent > 2 * stats[r].image_bytes);
    CHECK(stats[r].failed == 0);
  }
  CHECK(differences(held, 6) == kSame);
  stay.clear();
  job.wipe(1);
  std::vector<Source> sources;
  CHECK(recover_on_all(job, state_of, 6, sources) == kSame);
  CHECK(sources[1] == Source::kHolderMemory);
}

TEST_CASE("A holder whose trainer is late fills the image in when its own is there") {
  InProcessJob job(kWorld);
  std::promise<void> sent;  // rank 0 has sent all that travels of step 3
  std::atomic<bool> told{false};
  auto all_sent = sent.get_future().share();
  std::vector<std::unique_ptr<Checkpointer>> stay(kWorld);
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    auto o = job.options(rank);
    with_twins(o);
    if (rank == 0) {
      o.observer = [&](const PointEvent& e) {
        if (e.point == protocol::Point::kChunkSent && e.id.step == 3 && e.chunk == e.chunks &&
            !told.exchange(true)) {
          sent.set_value();
        }
      };
    }
    auto& ckpt = stay[static_cast<std::size_t>(rank)];
    ckpt = std::make_unique<Checkpointer>(o);
    Dict state = state_of(rank, 0);
    (void)ckpt->recover(state);
    for (std::uint64_t step = 1; step <= 2; ++step) {
      stage_and_wait(*ckpt, state_of(rank, step), step);
    }
    if (rank == 2 && all_sent.wait_for(std::chrono::seconds(20)) != std::future_status::ready) {
      throw Timeout("rank 0 did not send without rank 2's stage()");
    }
    stage_and_wait(*ckpt, state_of(rank, 3), 3);
    const auto replica = ckpt->held((rank + 2) % kWorld, dtensors(rank));
    const auto d = difference(state_of((rank + 2) % kWorld, 3), replica.state);
    if (!d.empty()) throw CorruptData(d);
    if (ckpt->stats().replica_bytes_spared != kTwinBytes) throw CorruptData("nothing was spared");
  });
  for (const auto& error : errors) CHECK(error == "");
}

TEST_CASE("What is said to be the same and is not fails one step, then travels whole") {
  InProcessJob job(kWorld);
  std::vector<std::vector<Outcome>> outcomes(kWorld);
  std::vector<std::unique_ptr<Checkpointer>> stay(kWorld);
  std::vector<std::vector<Replica>> held(kWorld);
  std::vector<std::uint64_t> spared(kWorld);
  const auto errors = run_ranks(all_ranks(kWorld), [&](int rank) {
    const auto r = static_cast<std::size_t>(rank);
    auto o = job.options(rank);
    // Rank 2 takes rank 0's "plain" for its own.
    o.twins = [rank](const Value& state, int peer) {
      auto paths = dtensor::twins(state, peer);
      if (rank == 2) paths.emplace_back("plain");
      return paths;
    };
    stay[r] = std::make_unique<Checkpointer>(o);
    Dict state = state_of(rank, 0);
    (void)stay[r]->recover(state);
    for (std::uint64_t step = 1; step <= 5; ++step) {
      outcomes[r].push_back(stay[r]->stage(state_of(rank, step), step).outcome().get(in_time()));
    }
    held[r].push_back(stay[r]->held((rank + 2) % kWorld, dtensors(rank)));
    spared[r] = stay[r]->stats().replica_bytes_spared;
  });
  for (const auto& error : errors) CHECK(error == "");
  const auto good = Outcome::kComplete;
  for (const auto& seen : outcomes) {
    CHECK(seen == std::vector<Outcome>{good, good, Outcome::kFailed, good, good});
  }
  CHECK(differences(held, 5) == kSame);
  CHECK(spared[0] == kTwinBytes + 5000 * 4);  // of the step that failed
  // A slot in which the failed step was being written may have to be filled from the start again.
  CHECK(spared[1] >= kTwinBytes);
  CHECK(spared[1] % kTwinBytes == 0);
  CHECK_THAT(job.log(), Contains("rank 0 has other bytes than this rank"));
  CHECK_THAT(job.log(), Contains("plain"));
}
