#include <meshstage/core/reshard/assembly.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/fields.hpp>

#include "tests/reshard/old_job.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

DeviceMesh row(int ranks) { return DeviceMesh::from_shape({ranks}); }

Value sharded_rows(const Tensor& whole, int ranks, int rank) {
  return dtensor::to_value(placed(whole, row(ranks), {Placement::shard(0)}, rank));
}

/// What planning throws; and that it wrote nothing.
template <class E = StructureMismatch>
std::string refused(const std::vector<Value>& old, const Dict& state, ReshardOptions options = {},
                    int rank = 0, int world_size = 3) {
  options.readers = all_readers();
  const TestImage image = make_image(state);
  std::string said = "nothing was thrown";
  try {
    (void)Assembly::plan(old, state, rank, world_size, options);
  } catch (const E& e) {
    said = e.what();
  }
  const TestImage now = make_image(state);
  CHECK(image.info.image_digest == now.info.image_digest);
  return said;
}

ReshardOptions kind(PlainKind kind) {
  return {.readers = {}, .plain = [kind](const std::string&) { return kind; }};
}

/// A type of a user's that has a tensor and a number.
class Counter final : public Node {
 public:
  Counter(Value tensor, Value count, std::string unit, bool fixed)
      : tensor_(std::move(tensor)),
        count_(std::move(count)),
        unit_(std::move(unit)),
        fixed_(fixed) {}
  [[nodiscard]] std::string type_name() const override { return "test.Counter"; }
  [[nodiscard]] std::vector<Child> children() const override {
    return {{"tensor", tensor_}, {"count", count_}};
  }
  [[nodiscard]] Value auxiliary() const override { return unit_; }
  [[nodiscard]] NodePtr rebuild(std::vector<Value> children) const override {
    return std::make_shared<Counter>(children[0], children[1], unit_, fixed_);
  }
  bool assign(const std::vector<Value>& children) override {
    if (fixed_) return false;
    tensor_ = children[0];
    count_ = children[1];
    return true;
  }

 private:
  Value tensor_, count_;
  std::string unit_;
  bool fixed_;
};

}  // namespace

TEST_CASE("plain values that are equal everywhere go to every rank, tensors in place") {
  const auto old = old_job(4, [](int) {
    return Dict{{"lr", 0.5},
                {"name", "adamw"},
                {"betas", Tuple{0.9, 0.999}},
                {"steps", List{1, 2}},
                {"bias", Value(counted({3}), Dict{{"frozen", true}})}};
  });
  const Tensor bias = Tensor::zeros({3}, DType::kF32);
  Dict state{{"lr", 0.0},
             {"name", ""},
             {"betas", Tuple{0.0, 0.0}},
             {"steps", List{0, 0}},
             {"bias", Value(bias, Dict{{"frozen", false}})}};
  assemble(old, state, 2, 3);
  CHECK_FALSE(compare(state, old.front(), {.device = false}));
  CHECK(same_bits(bias, counted({3})));
  CHECK(state.at("bias").as<Tensor>().identity() == bias.identity());
}

TEST_CASE("plain values that differ are refused by path, unless their kind says what they are") {
  const auto old = old_job(3, [](int rank) {
    return Dict{{"seen", 10 + rank}, {"rng", Tensor::full<std::int64_t>({2}, rank)}};
  });
  const auto fresh = [] {
    return Dict{{"seen", -1}, {"rng", Tensor::full<std::int64_t>({2}, -1)}};
  };
  const auto said = refused(old, fresh());
  for (const char* part : {"seen: ", "int 10 at rank 0", "int 11 at rank 1", "kPerRank"}) {
    CHECK_THAT(said, Contains(part));
  }
  CHECK_THAT(refused(old, fresh(),
                     {.plain =
                          [](const std::string& path) {
                            return path == "seen" ? PlainKind::kSummed : PlainKind::kSame;
                          }}),
             Contains("rng: "));
  struct Case {
    PlainKind kind;
    int rank;
    std::int64_t seen, rng;
  };
  for (const auto& [what, rank, seen, rng] :
       {Case{PlainKind::kFirst, 3, 10, 0}, Case{PlainKind::kPerRank, 2, 12, 2},
        Case{PlainKind::kPerRank, 3, -1, -1}, Case{PlainKind::kSummed, 0, 33, 3},
        Case{PlainKind::kSummed, 3, 0, 0}}) {
    INFO("kind " << static_cast<int>(what) << ", rank " << rank);
    Dict state = fresh();
    assemble(old, state, rank, 4, kind(what));
    CHECK(state.at("seen").as<std::int64_t>() == seen);
    CHECK(state.at("rng").as<Tensor>().to_vector<std::int64_t>() == std::vector{rng, rng});
  }
  const auto texts = old_job(2, [](int rank) { return Dict{{"t", std::to_string(rank)}}; });
  CHECK_THAT(refused(texts, Dict{{"t", ""}}, kind(PlainKind::kSummed)), Contains("no sum of"));
  const auto large = old_job(2, [](int) { return Dict{{"n", INT64_MAX}}; });
  CHECK_THAT(refused(large, Dict{{"n", 0}}, kind(PlainKind::kSummed)), Contains("64 signed bits"));
}

TEST_CASE("what does not fit is refused with its path, and nothing is written") {
  const Tensor whole = counted({8, 3});
  const auto old = old_job(2, [&](int rank) {
    return Dict{{"w", sharded_rows(whole, 2, rank)}, {"lr", 0.1}, {"l", List{1}}};
  });
  const auto fresh = [](const Tensor& w) {
    return Dict{{"w", sharded_rows(w, 3, 0)}, {"lr", 0.0}, {"l", List{0}}};
  };
  const Dict good = fresh(Tensor::zeros({8, 3}, DType::kF32));
  CHECK(refused(old, good) == "nothing was thrown");

  Dict more = good.clone();
  more.set("extra", 1);
  CHECK_THAT(refused(old, more), Contains("extra: no rank of the old job, of 2 ranks, has it"));
  Dict fewer = good.clone();
  fewer.erase("lr");
  CHECK_THAT(refused(old, fewer), Contains("lr: every rank of the old job has it"));
  Dict longer = good.clone();
  longer.set("l", List{0, 0});
  CHECK_THAT(refused(old, longer), Contains("l: it has 2 elements here, and 1 at rank 0"));
  Dict kinds = good.clone();
  kinds.set("l", Tuple{0});
  CHECK_THAT(refused(old, kinds), Contains("l: it is a tuple of 1 here"));
  kinds.set("l", 3);
  CHECK_THAT(refused(old, kinds), Contains("l: it is a plain value here"));
  kinds = good.clone();
  kinds.set("lr", Tensor::zeros({1}, DType::kF32));
  CHECK_THAT(refused(old, kinds), Contains("lr: it is a tensor here"));
  CHECK_THAT(refused(old, fresh(Tensor::zeros({8, 4}, DType::kF32))),
             Contains("w: it is F32[8, 3] in the old job and F32[8, 4] here"));
  CHECK_THAT(refused(old, fresh(Tensor::zeros({8, 3}, DType::kF64))),
             Contains("w: it is F32[8, 3] in the old job and F64[8, 3] here"));

  const auto one_gone = std::vector<Value>{old[1]};
  CHECK_THAT(refused(one_gone, good),
             Contains("w: no rank of the old job has the box [3, 3] at [0, 0] of F32[8, 3]"));
  const Tensor constant = counted({8, 3});
  Dict read_only{{"w", Tensor::on_storage(
                           Storage::wrap(constant.storage().data(), constant.storage().nbytes(),
                                         std::make_shared<Tensor>(constant), {.read_only = true}),
                           DType::kF32, {8, 3})},
                 {"lr", 0.0},
                 {"l", List{0}}};
  CHECK_THAT(refused<InvalidState>(old, read_only), Contains("w is in read-only memory"));

  const auto partial = old_job(2, [&](int rank) {
    const DTensorSpec spec{row(2), {Placement::partial()}, DType::kF32, {8, 3}, {3, 1}};
    return Dict{{"w", dtensor::to_value(DTensor::from_spec(whole.clone(), spec, rank))},
                {"lr", 0.1},
                {"l", List{1}}};
  });
  CHECK_THAT(refused(partial, good), Contains("w: ") && Contains("redistribute()"));
  try {
    (void)Assembly::plan(old, good, 0, 3, {});  // without readers
    FAIL("nothing was thrown");
  } catch (const StructureMismatch& e) {
    CHECK(e.path() == "w");
    CHECK_THAT(e.what(), Contains("ReshardOptions::readers"));
  }
  CHECK_THROWS_AS(Assembly::plan(old, good, 3, 3, {}), InvalidArgument);
  CHECK_THROWS_AS(Assembly::plan({}, good, 0, 3, {}), InvalidArgument);
}

TEST_CASE("paths that only some ranks have, as in a pipeline, go to whoever has them now") {
  const Tensor a = counted({4}), b = counted({4}, 100);
  const auto old = old_job(2, [&](int rank) {
    return rank == 0 ? Dict{{"layer0", a}, {"lr", 1}} : Dict{{"layer1", b}, {"lr", 1}};
  });
  Dict state{{"layer0", Tensor::zeros({4}, DType::kF32)},
             {"layer1", Tensor::zeros({4}, DType::kF32)},
             {"lr", 0}};
  assemble(old, state, 0, 1);
  CHECK(same_bits(state.at("layer0").as<Tensor>(), a));
  CHECK(same_bits(state.at("layer1").as<Tensor>(), b));
}

TEST_CASE("what only some ranks have is compared by whoever has it, and has no sum") {
  // Rank 1 of the new job, which would compare old rank 1's, has no such path.
  const auto old = old_job(3, [](int rank) {
    Dict state{{"lr", 1}};
    if (rank < 2) state.set("mean", Tensor::full<float>({4}, static_cast<float>(rank)));
    return state;
  });
  const Dict state{{"mean", Tensor::zeros({4}, DType::kF32)}, {"lr", 0}};
  for (const int world_size : {1, 2, 3}) {
    CHECK_THAT(refused(old, state, {}, 0, world_size), Contains("mean: "));
  }
  CHECK_THAT(refused(old, state, kind(PlainKind::kSummed)),
             Contains("only 2 of 3 ranks of the old job have it"));
  const auto seen = old_job(
      2, [](int rank) { return rank == 0 ? Dict{{"lr", 1}} : Dict{{"seen", 7}, {"lr", 1}}; });
  CHECK_THAT(refused(seen, Dict{{"seen", 0}, {"lr", 0}}, kind(PlainKind::kSummed), 1, 2),
             Contains("seen: it is to be summed"));
}

TEST_CASE("lists of other lengths are refused, and so is one list for what were two") {
  const auto lists =
      old_job(2, [](int rank) { return Dict{{"bad", rank == 0 ? List{} : List{17, 99}}}; });
  CHECK_THAT(refused(lists, Dict{{"bad", List{}}}),
             Contains("bad: it has 0 elements here, and 2 at rank 1"));
  CHECK_THAT(refused(lists, Dict{{"bad", List{0, 0}}}, kind(PlainKind::kFirst)),
             Contains("bad: it has 2 elements here, and 0 at rank 0"));

  const auto two =
      old_job(2, [](int) { return Dict{{"model", Dict{{"w", 1}}}, {"ema", Dict{{"w", 2}}}}; });
  const Dict shared{{"w", 0}};
  CHECK_THAT(refused(two, Dict{{"model", shared}, {"ema", shared}}),
             Contains("ema: it is shared with \"model\" here, and not at rank 0"));
  const auto one = old_job(2, [](int) {
    const Dict both{{"w", 3}};
    return Dict{{"model", both}, {"ema", both}};
  });
  Dict state{{"model", shared}, {"ema", shared}};
  assemble(one, state, 0, 3);
  CHECK(state.at("ema").as<Dict>().at("w").as<std::int64_t>() == 3);
  const auto nodes = old_job(1, [](int) {
    const auto counter = [](int n) {
      return std::make_shared<Counter>(Tensor::zeros({1}, DType::kF32), n, "steps", false);
    };
    return Dict{{"a", NodePtr(counter(1))}, {"b", NodePtr(counter(2))}};
  });
  const NodePtr node =
      std::make_shared<Counter>(Tensor::zeros({1}, DType::kF32), 0, "steps", false);
  CHECK_THAT(refused(nodes, Dict{{"a", node}, {"b", node}}),
             Contains("b: it is shared with \"a\" here"));
}

TEST_CASE("tied tensors are written once; what is tied here and differed there is refused") {
  const Tensor whole = counted({6, 2});
  const auto tied_job = old_job(2, [&](int rank) {
    const Value w = sharded_rows(whole, 2, rank);
    const auto local = dtensor::from_value(w).to_local();
    return Dict{{"wte", w}, {"head", w}, {"flat", local.view({-1})}};
  });
  Dict state;
  const Value w = sharded_rows(Tensor::zeros({6, 2}, DType::kF32), 3, 1);
  state.set("wte", w);
  state.set("head", w);
  auto fails = [&] { assemble(tied_job, state, 1, 3); };
  CHECK_THROWS_AS(fails(), StructureMismatch);  // "flat" is a part of each rank's memory
  const auto job = old_job(2, [&](int rank) {
    const Value v = sharded_rows(whole, 2, rank);
    return Dict{{"wte", v}, {"head", v}};
  });
  assemble(job, state, 1, 3);
  CHECK(same_bits(dtensor::from_value(w).to_local(), cut(whole, {{2, 2}, {2, 0}})));

  const auto untied = old_job(2, [&](int rank) {
    return Dict{{"wte", sharded_rows(whole, 2, rank)},
                {"head", sharded_rows(counted({6, 2}, 1), 2, rank)}};
  });
  CHECK_THAT(refused(untied, state, {}, 1, 3), Contains("head: it shares memory with wte here"));
}

TEST_CASE("large tensors are written by several threads: rows, columns, tied ones and views") {
  const Tensor whole = counted({1024, 3072});  // 12 MiB
  const auto columns_of = [&](const Tensor& of, int ranks, int rank) {
    return dtensor::to_value(placed(of, row(ranks), {Placement::shard(1)}, rank));
  };
  const auto job = old_job(3, [&](int rank) {
    const Value rows = sharded_rows(whole, 3, rank);
    return Dict{{"rows", rows},
                {"tied", rows},
                {"columns", columns_of(whole, 3, rank)},
                {"upper", whole.narrow(0, 0, 600)},
                {"lower", whole.narrow(0, 400, 624)}};
  });
  for (const unsigned hands : {1U, 4U, 0U}) {
    for (int rank = 0; rank < 2; ++rank) {
      const Tensor zeros = Tensor::zeros({1024, 3072}, DType::kF32);
      const Value rows = sharded_rows(zeros, 2, rank);
      const Value columns = columns_of(zeros, 2, rank);
      const Tensor buffer = Tensor::zeros({1024, 3072}, DType::kF32);
      Dict state{{"rows", rows},
                 {"tied", rows},
                 {"columns", columns},
                 {"upper", buffer.narrow(0, 0, 600)},
                 {"lower", buffer.narrow(0, 400, 624)}};
      Assembly::plan(job, state, rank, 2, {.readers = all_readers()})
          .write({}, Deadline::never(), hands);
      CHECK(same_bits(dtensor::from_value(rows).to_local(),
                      cut(whole, {{512, 3072}, {512 * rank, 0}})));
      CHECK(same_bits(dtensor::from_value(columns).to_local(),
                      cut(whole, {{1024, 1536}, {0, 1536 * rank}})));
      CHECK(same_bits(buffer, whole));
    }
  }
}

TEST_CASE("views of one buffer: beside each other, between each other, across each other") {
  const Tensor a = counted({4}), b = counted({4}, 50);
  const auto old = old_job(2, [&](int) { return Dict{{"a", a}, {"b", b}}; });
  const Tensor buffer = Tensor::zeros({8}, DType::kF32);
  const auto state_of = [&](const Tensor& first, const Tensor& second) {
    return Dict{{"a", first}, {"b", second}};
  };
  for (const bool between : {false, true}) {
    Dict state = between ? state_of(buffer.slice(0, 0, 8, 2), buffer.slice(0, 1, 8, 2))
                         : state_of(buffer.narrow(0, 0, 4), buffer.narrow(0, 4, 4));
    assemble(old, state, 0, 1);
    CHECK(same_bits(state.at("a").as<Tensor>().contiguous(), a));
    CHECK(same_bits(state.at("b").as<Tensor>().contiguous(), b));
  }
  CHECK_THAT(refused(old, state_of(buffer.narrow(0, 0, 4), buffer.narrow(0, 3, 4))),
             Contains("b: it shares memory with a here"));
  CHECK_THAT(refused(old, state_of(buffer.narrow(0, 0, 1).expand({4}), buffer.narrow(0, 4, 4))),
             Contains("a: elements of it share memory here"));
}

TEST_CASE("copies that a mesh replicates and that differ: all from the first, with a warning") {
  const Tensor whole = counted({4, 2});
  const auto mesh = DeviceMesh::from_shape({2, 2}, {"dp", "tp"});
  const Placements placements{Placement::replicate(), Placement::shard(0)};
  const auto job = [&](bool differ) {
    return old_job(4, [&, differ](int rank) {
      const bool other = differ && rank == 3;  // dp 1, tp 1: the last two rows
      return Dict{{"w", dtensor::to_value(
                            placed(other ? counted({4, 2}, 9) : whole, mesh, placements, rank))}};
    });
  };
  for (int rank = 0; rank < 2; ++rank) {
    Dict state{{"w", sharded_rows(Tensor::zeros({4, 2}, DType::kF32), 2, rank)}};
    auto quiet = Assembly::plan(job(false), state, rank, 2, {.readers = all_readers()});
    CHECK(quiet.warnings().empty());
    CHECK(quiet.bytes() == 16);
    auto assembly = Assembly::plan(job(true), state, rank, 2, {.readers = all_readers()});
    REQUIRE(assembly.warnings().size() == (rank == 1 ? 1 : 0));
    if (rank == 1) CHECK_THAT(assembly.warnings()[0], Contains("w: the box [2, 2] at [2, 0]"));
    assembly.write();
    CHECK(same_bits(dtensor::from_value(state.at("w")).to_local(),
                    cut(whole, {{2, 2}, {2 * rank, 0}})));
  }
}

TEST_CASE("one path on several meshes is read if they agree, and refused if they differ") {
  const auto mesh = DeviceMesh::from_shape({2, 2}, {"pp", "tp"});
  const auto job = [&](float step) {
    return old_job(4, [&, step](int rank) {
      const auto stage = mesh.slice("tp", rank);
      const auto whole = counted({4}, rank < 2 ? 0 : step);
      return Dict{{"w", dtensor::to_value(placed(whole, stage, {Placement::shard(0)}, rank))}};
    });
  };
  Dict state{{"w", Tensor::zeros({4}, DType::kF32)}};
  assemble(job(0), state, 0, 1);
  CHECK(same_bits(state.at("w").as<Tensor>(), counted({4})));
  CHECK_THAT(refused(job(5), state), Contains("w: it lies on several meshes"));
}

TEST_CASE(
    "a user's nodes take their children over, in place or rebuilt, wherever they are shared") {
  for (const bool fixed : {false, true}) {
    const auto make = [fixed](const Tensor& t, int count, const char* unit) {
      return std::make_shared<Counter>(t, count, unit, fixed);
    };
    const auto old = old_job(2, [&](int) {
      const auto node = make(counted({2}), 5, "tokens");
      return Dict{{"a", node}, {"b", List{node}}};
    });
    const Tensor tensor = Tensor::zeros({2}, DType::kF32);
    const auto node = make(tensor, 0, "tokens");
    Dict state{{"a", node}, {"b", List{node}}};
    assemble(old, state, 0, 1);
    const auto now = state.at("a").as<NodePtr>();
    CHECK((now == node) == !fixed);
    CHECK(state.at("b").at(0).as<NodePtr>() == now);
    CHECK(now->children()[1].value.as<int>() == 5);
    CHECK(same_bits(tensor, counted({2})));
    const auto other = make(tensor, 0, "samples");
    CHECK_THAT(refused(old, Dict{{"a", other}, {"b", List{other}}}),
               Contains("a: the node \"test.Counter\" is described otherwise"));
  }
}

TEST_CASE("reshard: what each rank has for itself keeps its structure, and a new rank its own") {
  const auto old = old_job(2, [](int rank) {
    List order{1, 2};
    if (rank == 1) order = List{5};
    return Dict{{"loader", Dict{{"order", order}, {"epoch", 10 + rank}}}, {"step", 3}};
  });
  const auto state = [](List order, int epoch) {
    return Dict{{"loader", Dict{{"order", std::move(order)}, {"epoch", epoch}}}, {"step", 0}};
  };
  const auto epoch_of = [](const Dict& of) {
    return of.at("loader").at("epoch")->as<std::int64_t>();
  };
  ReshardOptions options;
  options.plain = [](const std::string& path) {
    return path.starts_with("loader") ? PlainKind::kPerRank : PlainKind::kSame;
  };
  Dict mine = state(List{9}, 0);
  assemble(old, mine, 1, 3, options);
  CHECK(epoch_of(mine) == 11);
  CHECK(mine.at("loader").at("order")->as<List>()[0].as<std::int64_t>() == 5);
  for (const auto& longer : {List{9, 9}, List{}}) {
    CHECK_THAT(refused(old, state(longer, 0), options, 1),
               Contains("loader.order: rank 1 of the old job had 1 elements, this rank has " +
                        std::to_string(longer.size())));
  }
  Dict of_new = state(List{9, 9, 9}, 7);
  assemble(old, of_new, 2, 3, options);
  CHECK(epoch_of(of_new) == 7);
  CHECK(of_new.at("loader").at("order")->as<List>().size() == 3);
  CHECK(of_new.at("step").as<std::int64_t>() == 3);
  // What no old rank had is kept.
  mine.set("loader_of_gpu", 5);
  assemble(old, mine, 1, 3, options);
  CHECK(mine.at("loader_of_gpu").as<std::int64_t>() == 5);
  // A value inside may be of another kind, also for a rank that is new; and a tensor on a mesh.
  options.plain = [](const std::string& path) {
    return path.starts_with("loader") && path != "loader.epoch" ? PlainKind::kPerRank
                                                                : PlainKind::kFirst;
  };
  assemble(old, of_new, 2, 3, options);
  CHECK(epoch_of(of_new) == 10);
  CHECK(of_new.at("loader").at("order")->as<List>().size() == 3);
  // What it may lack is what each rank has for itself.
  Dict without_order{{"loader", Dict{{"epoch", 0}}}, {"step", 0}};
  assemble(old, without_order, 2, 3, options);
  CHECK(epoch_of(without_order) == 10);
  CHECK_THAT(refused(old, Dict{{"loader", Dict{{"order", List{}}}}, {"step", 0}}, options, 2),
             Contains("loader.epoch: every rank of the old job has it"));
}

TEST_CASE("reshard: a tensor on a mesh has its boxes, also in what each rank has for itself") {
  const Tensor whole = counted({8, 3});
  const auto old = old_job(4, [&](int rank) {
    return Dict{{"own", Dict{{"w", sharded_rows(whole, 4, rank)}, {"n", rank}}}};
  });
  for (int rank = 0; rank < 6; ++rank) {
    Dict state{{"own", Dict{{"w", sharded_rows(counted({8, 3}, 100), 6, rank)}, {"n", 50 + rank}}}};
    assemble(old, state, rank, 6, kind(PlainKind::kPerRank));
    const Box box = local_shard(row(6), rank, whole.shape(), Placements{Placement::shard(0)});
    CHECK(same_bits(dtensor::from_value(*state.at("own").at("w")).to_local(), cut(whole, box)));
    CHECK(state.at("own").at("n")->as<std::int64_t>() == (rank < 4 ? rank : 50 + rank));
  }
}

TEST_CASE("reshard: groups of ranks whose meshes have one name must have the same tensor") {
  const bool alike = GENERATE(true, false);
  const int dim = GENERATE(0, 1);  // how the second group's tensor is cut
  const auto old = old_job(4, [&](int rank) {
    const Tensor whole = counted({8, 4}, alike || rank < 2 ? 0 : 100);
    return Dict{{"w", dtensor::to_value(placed(whole, row(2),
                                               {Placement::shard(rank < 2 ? 0 : dim)}, rank % 2))}};
  });
  Dict state{{"w", counted({8, 4}, 7)}};
  if (alike) {
    assemble(old, state, 0, 1);
    CHECK(same_bits(state.at("w").as<Tensor>(), counted({8, 4})));
  } else {
    CHECK_THAT(refused(old, state, {}, 0, 1), Contains("lies on several meshes"));
  }
}
