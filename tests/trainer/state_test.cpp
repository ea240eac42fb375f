// What another job takes from the states that one saved, and faults that come no more.
#include <fstream>
#include <stdexcept>

#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"
#include "tools/trainer/fault.hpp"
#include "tools/trainer/state.hpp"

namespace {

using trainer::TrainingState;

trainer::CharacterModel<float> small_model() {
  trainer::ModelSize size;
  size.vocabulary = 5;
  size.context = 2;
  size.embedding = 3;
  size.hidden = 16;
  return trainer::CharacterModel<float>(size);
}

/// As after two steps; `salt` is another on each rank.
void train(TrainingState& state, float salt) {
  state.step = 2;
  state.parameters()[1][3] = 0.25F;
  state.exp_avg()[0][0] = 0.5F;
  state.losses()[1] = 3.0F;
  state.rank_losses()[1] = salt;
  state.draw();
}

}  // namespace

TEST_CASE("A state is taken from what rank 0 saved, and what is a rank's own from that rank") {
  const TempDirectory directory;
  const auto model = small_model();
  const auto of_root = directory.path() / "0";
  const auto own = directory.path() / "1";
  TrainingState root(model, 4, 1, 0);
  train(root, 7);
  root.save(of_root);
  TrainingState second(model, 4, 1, 1);
  train(second, 8);
  second.save(own);

  TrainingState loaded(model, 4, 1, 1);
  loaded.load(of_root, own);
  CHECK(loaded.step == 2);
  CHECK(loaded.parameters()[1][3] == 0.25F);
  CHECK(loaded.exp_avg()[0][0] == 0.5F);
  CHECK(loaded.losses()[1] == 3.0F);
  CHECK(loaded.rank_losses()[1] == 8.0F);
  CHECK(loaded.draw() == second.draw());

  // A rank that was not there before: its own choice of examples, and no losses.
  TrainingState third(model, 4, 1, 2);
  TrainingState fresh(model, 4, 1, 2);
  third.load(of_root, {});
  CHECK(third.step == 2);
  CHECK(third.losses()[1] == 3.0F);
  CHECK(third.rank_losses()[1] == 0.0F);
  CHECK(third.draw() == fresh.draw());

  CHECK_THROWS_AS(third.load(directory.path() / "none", {}), meshstage::NotFound);
  TrainingState longer(model, 5, 1, 0);
  CHECK_THROWS_AS(longer.load(of_root, {}), meshstage::CorruptData);
}

TEST_CASE("What is a rank's own stays with it when the number of ranks changes") {
  const auto options = trainer::reshard_options();
  CHECK(options.plain("random.state") == meshstage::PlainKind::kPerRank);
  CHECK(options.plain("history.rank_loss") == meshstage::PlainKind::kPerRank);
  CHECK(options.plain("history.loss") == meshstage::PlainKind::kSame);
  CHECK(options.plain("model.hidden1.weight") == meshstage::PlainKind::kSame);
}

TEST_CASE("A hold is a step and a file") {
  const auto hold = trainer::Hold::parse("87:/tmp/go:on");
  CHECK(hold.step == 87);
  CHECK(hold.file == "/tmp/go:on");
  for (const char* wrong : {"", "87", "87:", ":file", "0:file", "x:file", "-1:file"}) {
    INFO(wrong);
    CHECK_THROWS_AS(trainer::Hold::parse(wrong), std::invalid_argument);
  }
}

TEST_CASE("Once a file is there no fault comes any more") {
  const TempDirectory directory;
  const auto file = directory.path() / "over";
  const trainer::Report silent(-1);
  trainer::Faults faults({trainer::Fault::parse("kill@3")}, silent, file);
  CHECK_FALSE(faults.over());
  std::ofstream(file) << "over\n";
  CHECK(faults.over());
  faults.begin_step(3);  // would end this test
  CHECK_FALSE(trainer::Faults({}, silent).over());
}
