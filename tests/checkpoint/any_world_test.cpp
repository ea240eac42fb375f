// A job that comes back with another number of ranks, and goes on from the files of before.
#include <meshstage/core/checkpoint/checkpointer.hpp>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/sharded/node.hpp>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/rank_errors.hpp"

namespace ms = meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

/// Values that no two steps, and no two elements of a tensor, have in common.
ms::Tensor whole(const ms::Shape& shape, std::uint64_t step, float salt) {
  ms::Tensor t = ms::Tensor::arange<float>(ms::element_count(shape)).view(shape);
  for (float& x : t.span<float>()) x = x / 64 + salt + static_cast<float>(step) * 100;
  return t;
}

ms::Tensor part(const ms::Tensor& of, const ms::Box& box, bool transposed = false) {
  const ms::Tensor view = ms::view_of(of, {of.shape(), ms::Shape(of.dim(), 0)}, box);
  return transposed ? view.transpose(0, 1).clone().transpose(0, 1) : view.clone();
}

ms::Value on_mesh(const ms::Tensor& of, const ms::DeviceMesh& mesh, const char* placements,
                  int rank, bool transposed = false) {
  const ms::DTensorSpec spec{mesh, ms::parse_placements(placements), of.dtype(), of.shape(),
                             ms::contiguous_strides(of.shape())};
  const ms::Box box = ms::local_shard(mesh, rank, of.shape(), spec.placements);
  return ms::dtensor::to_value(ms::DTensor::from_spec(part(of, box, transposed), spec, rank));
}

/// The state of one of `world` ranks at a step: cut in all the ways that there are.
ms::Dict state_at(int rank, int world, std::uint64_t step) {
  const auto row = ms::DeviceMesh::from_shape({world});
  const auto grid = world % 2 == 0 ? ms::DeviceMesh::from_shape({2, world / 2})
                                   : ms::DeviceMesh::from_shape({world, 1});
  const ms::Value tied = on_mesh(whole({13, 7}, step, 1), row, "S(0)", rank);
  const ms::Tensor shards = whole({10, 3}, step, 2);
  std::vector<ms::ShardPlacement> places;
  for (int r = world; r-- > 0;) places.push_back({r, ms::kCpu});  // the last rank has the first
  const auto metadata = ms::shards_of(ms::ChunkSharding{0, places}, shards.shape(), world);
  std::vector<ms::Tensor> local;
  for (const auto& s : metadata) {
    if (s.placement.rank == rank) local.push_back(part(shards, {s.sizes, s.offsets}));
  }
  const auto sharded =
      ms::ShardedTensor::from_metadata(local, {shards.shape(), shards.dtype(), metadata}, rank);
  return ms::Dict{{"wte", tied},
                  {"head", tied},
                  {"replicated", on_mesh(whole({4, 5}, step, 3), grid, "R,S(1)", rank)},
                  {"twice", on_mesh(whole({9, 2}, step, 4), grid, "S(0),S(0)", rank, true)},
                  {"shards", ms::sharded::to_value(sharded)},
                  {"bias", whole({5}, step, 5)},
                  {"lists", ms::List{ms::Tuple{0.5, "adamw"}, whole({}, step, 6)}},
                  {"step", static_cast<std::int64_t>(step)},
                  {"seen", static_cast<std::int64_t>(rank == 0 ? step : 0)}};
}

/// A job whose number of ranks changes from start to start. Disk, vaults and Store stay.
class ChangingJob {
 public:
  /// Each start has connections of its own.
  void start(int world, const std::function<void(ms::CheckpointerOptions, int rank)>& body) {
    const auto fabric = std::make_shared<ms::InProcessFabric>();
    all_good(
        run_ranks(all_ranks(world), [&](int rank) { body(options(rank, world, *fabric), rank); }));
  }
  ms::CheckpointerOptions options(int rank, int world, ms::InProcessFabric& fabric) {
    auto o = job.options(rank);
    o.environment->world_size = o.environment->local_world_size = world;
    o.transport = fabric.attach(rank);
    ms::ReshardOptions reshard;
    ms::dtensor::register_boxes(reshard.readers);
    ms::sharded::register_boxes(reshard.readers);
    reshard.plain = [](const std::string& path) {
      return path == "seen" ? ms::PlainKind::kSummed : ms::PlainKind::kSame;
    };
    o.any_world = reshard;
    return o;
  }
  /// Of each file on disk: "step 20 of 3".
  std::vector<std::string> files() {
    std::vector<std::string> names;
    for (const auto& image : ms::list_images(job.disk(), "/disk", InProcessJob::kName)) {
      const auto& n = image.name;
      if (n.holder) continue;
      names.push_back("step " + std::to_string(n.id.step) + " of " + std::to_string(n.world_size));
    }
    return names;
  }

  InProcessJob job{1};
};

/// Recovers into a state of other values; throws unless it is what slicing gives.
ms::Recovered recover_exactly(ms::Checkpointer& ckpt, std::uint64_t step) {
  const int rank = ckpt.rank(), world = ckpt.world_size();
  ms::Dict state = state_at(rank, world, 777'777);
  const auto recovered = ckpt.recover(state);
  require(recovered.step == step, "step " + std::to_string(recovered.step));
  const auto wrong = difference(state, state_at(rank, world, step));
  require(wrong.empty(), wrong);
  return recovered;
}

void stage_exactly(ms::Checkpointer& ckpt, std::uint64_t step) {
  const ms::Dict state = state_at(ckpt.rank(), ckpt.world_size(), step);
  auto staging = ckpt.stage(state, step);
  require(staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20))) ==
              ms::Outcome::kComplete,
          "step " + std::to_string(step) + " is not complete");
}

/// A first start of `world` ranks leaves step 10 on disk, and step 20 in memory if it `dies`.
void first_start(ChangingJob& job, int world, bool dies = false) {
  job.start(world, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_at(rank, world, 0);
    (void)ckpt.recover(state);
    ckpt.persist_now();
    auto staging = ckpt.stage(state_at(rank, world, 10), 10);
    require(staging.persisted().get(ms::Deadline::after(std::chrono::seconds(20))) ==
                ms::DiskOutcome::kEverywhere,
            "step 10 is not on disk");
    if (!dies) return ckpt.finish();
    stage_exactly(ckpt, 20);
    (void)ckpt.group()->size();
    static std::barrier<> all(4);
    all.arrive_and_wait();  // else the first to leave fails step 20 for the others
  });
}

/// Its assign() throws while `armed`, as a process might die there.
class Mine final : public ms::Node {
 public:
  Mine(ms::Value count, std::atomic<bool>* armed) : count_(std::move(count)), armed_(armed) {}
  [[nodiscard]] std::string type_name() const override { return "test.Mine"; }
  [[nodiscard]] std::vector<Child> children() const override { return {{"count", count_}}; }
  [[nodiscard]] ms::NodePtr rebuild(std::vector<ms::Value> children) const override {
    return std::make_shared<Mine>(children[0], armed_);
  }
  bool assign(const std::vector<ms::Value>& children) override {
    if (armed_ != nullptr && armed_->exchange(false)) throw std::runtime_error("the mine went off");
    count_ = children[0];
    return true;
  }

 private:
  ms::Value count_;
  std::atomic<bool>* armed_;
};

}  // namespace

TEST_CASE("4 ranks, then 3, 6, 1, 8 and 4: each start has what slicing gives, and goes on") {
  ChangingJob job;
  first_start(job, 4);
  std::uint64_t step = 10;
  int before = 4;
  for (const int world : {3, 6, 1, 8, 4}) {
    INFO(before << " ranks, then " << world);
    job.start(world, [&](ms::CheckpointerOptions o, int) {
      ms::Checkpointer ckpt(std::move(o));
      const auto recovered = recover_exactly(ckpt, step);
      require(recovered.old_world_size == before, std::to_string(recovered.old_world_size));
      require(recovered.source == ms::Source::kDisk, "not from disk");
      require(recovered.id == ms::ImageId{ckpt.generation(), step}, to_string(recovered.id));
      stage_exactly(ckpt, step + 10);
      ckpt.finish();
    });
    step += 10;
    // Of the files of before some may still be there: a rank may leave before it hears that all
    // have newer ones. A later start removes them.
    const auto files = job.files();
    const auto name = "step " + std::to_string(step) + " of " + std::to_string(world);
    CHECK(std::count(files.begin(), files.end(), name) == world);
    before = world;
    CHECK(job.job.disk().list("/vault").empty());
  }
}

TEST_CASE("what fits one rank and not another is refused at all, and no state is touched") {
  ChangingJob job;
  first_start(job, 4);
  std::vector<std::string> said(3), later(3);
  job.start(3, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_at(rank, 3, 5);
    if (rank == 1) state.set("extra", 1);
    const ms::Dict before = state_at(rank, 3, 5);
    const auto at = static_cast<std::size_t>(rank);
    try {
      (void)ckpt.recover(state);
    } catch (const ms::StructureMismatch& e) {
      said[at] = e.what();
      require(e.path() == "extra", e.path());
    }
    if (rank == 1) state.erase("extra");
    require(difference(state, before).empty(), "touched");
    try {
      (void)ckpt.stage(state, 6);
    } catch (const ms::StructureMismatch& e) {
      later[at] = e.what();
    }
    static std::barrier<> all(3);
    all.arrive_and_wait();
  });
  for (const auto& text : said) {
    CHECK_THAT(text, Contains("generation") && Contains("step 10 of 4 ranks") &&
                         Contains("rank 1") && Contains("extra: no rank of the old job"));
  }
  CHECK(later == said);
  // The files are still there, for either number.
  job.start(3, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_exactly(ckpt, 10);
    ckpt.finish();
  });
}

TEST_CASE("what 4 ranks have in memory alone and is newer is named, and 4 ranks get it") {
  ChangingJob job;
  first_start(job, 4, true);
  SECTION("3 ranks go on from the files") {
    job.start(3, [&](ms::CheckpointerOptions o, int) {
      ms::Checkpointer ckpt(std::move(o));
      (void)recover_exactly(ckpt, 10);
      stage_exactly(ckpt, 11);
      ckpt.finish();
    });
    CHECK_THAT(job.job.log(), Contains("step 20 of 4 ranks is newer than what is gone on from") &&
                                  Contains("start it with 4 ranks"));
  }
  SECTION("4 ranks go on from memory") {
    job.start(4, [&](ms::CheckpointerOptions o, int) {
      ms::Checkpointer ckpt(std::move(o));
      const auto recovered = recover_exactly(ckpt, 20);
      require(recovered.old_world_size == 0, "put together");
      ckpt.finish();
    });
    CHECK_THAT(job.job.log(), !Contains("is newer than what is gone on from"));
  }
  SECTION("without files of every rank another number is refused") {
    for (const auto& name : job.job.disk().list("/disk")) {
      if (name.find(".r00002of") != std::string::npos) job.job.disk().unlink("/disk/" + name);
    }
    std::vector<std::string> said(3);
    job.start(3, [&](ms::CheckpointerOptions o, int rank) {
      ms::Checkpointer ckpt(std::move(o));
      ms::Dict state = state_at(rank, 3, 5);
      try {
        (void)ckpt.recover(state);
      } catch (const ms::StructureMismatch& e) {
        said[static_cast<std::size_t>(rank)] = e.what();
      }
      static std::barrier<> all(3);
      all.arrive_and_wait();
    });
    for (const auto& text : said) {
      CHECK_THAT(text, Contains("was made by 4 ranks, this job has 3") &&
                           Contains("no step with a sound file of every rank"));
    }
  }
}

TEST_CASE("a death after one state was written and before the step is established loses nothing") {
  ChangingJob job;
  const auto with_mine = [](ms::Dict state, std::atomic<bool>* armed) {
    state.set("mine", std::make_shared<Mine>(7, armed));
    return state;
  };
  job.start(4, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = with_mine(state_at(rank, 4, 0), nullptr);
    (void)ckpt.recover(state);
    auto staging = ckpt.stage(with_mine(state_at(rank, 4, 10), nullptr), 10);
    staging.staged().wait();
    ckpt.finish();
  });
  const auto fabric = std::make_shared<ms::InProcessFabric>();
  std::atomic<bool> armed{true};
  std::atomic<int> assembled{0};
  const auto check = [&](ms::Checkpointer& ckpt, int rank, ms::Dict& state) {
    const auto recovered = ckpt.recover(state);
    require(recovered.step == 10, "step " + std::to_string(recovered.step));
    const auto wrong = difference(state, with_mine(state_at(rank, 3, 10), nullptr));
    require(wrong.empty(), wrong);
    if (recovered.old_world_size == 4) ++assembled;
  };
  std::vector<std::string> errors = run_ranks(all_ranks(3), [&](int rank) {
    std::optional<ms::Checkpointer> ckpt(job.options(rank, 3, *fabric));
    ms::Dict state = with_mine(state_at(rank, 3, 5), rank == 1 ? &armed : nullptr);
    try {
      (void)ckpt->recover(state);
      throw ms::InvalidState("nobody died");
    } catch (const ms::RejoinNeeded&) {
      require(rank != 1, "rank 1 is the dead one");
      ckpt->rejoin();
    } catch (const std::runtime_error& e) {
      require(rank == 1 && std::string(e.what()) == "the mine went off", e.what());
      ckpt.reset();
      ckpt.emplace(job.options(rank, 3, *fabric));  // the replacement, with a fresh state
      state = with_mine(state_at(rank, 3, 6), nullptr);
    }
    check(*ckpt, rank, state);
    ckpt->finish();
  });
  all_good(errors);
  CHECK(assembled == 3);
  const auto files = job.files();
  CHECK(std::count(files.begin(), files.end(), "step 10 of 3") == 3);
}

TEST_CASE("4 ranks that were to become 3, and died in between, come back as 4") {
  ChangingJob job;
  first_start(job, 4);
  const auto fabric = std::make_shared<ms::InProcessFabric>();
  std::barrier<> all(3);
  all_good(run_ranks(all_ranks(3), [&](int rank) {
    auto o = job.options(rank, 3, *fabric);
    o.observer = [&](const ms::PointEvent& event) {
      if (rank == 2 && event.name == "own-writing") throw std::runtime_error("dies here");
    };
    std::optional<ms::Checkpointer> ckpt(std::move(o));
    ms::Dict state = state_at(rank, 3, 5);
    try {
      (void)ckpt->recover(state);
      throw std::logic_error("nobody died");
    } catch (const ms::Error&) {
    }
    all.arrive_and_wait();
  }));
  job.start(4, [&](ms::CheckpointerOptions o, int) {
    ms::Checkpointer ckpt(std::move(o));
    const auto recovered = recover_exactly(ckpt, 10);
    require(recovered.old_world_size == 0, "put together");
    ckpt.finish();
  });
}
