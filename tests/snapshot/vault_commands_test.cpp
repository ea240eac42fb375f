// ls, clean, and the other commands on images in vaults.
#include <meshstage/core/vault/listing.hpp>

#include "tests/snapshot/snapshot_support.hpp"
#include "tests/support/catch.hpp"
#include "tools/snapshot/open.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

/// Vaults of ranks 0 (dead) and 2 of job "gpt2": own images of steps 80 and 85, and rank 2's
/// replica of step 85 at rank 0.
struct Vaults {
  TempDirectory temp;
  TestImage s80 = image_of(small_state(), "gpt2", 2, {3, 80});
  TestImage s85 = image_of(small_state(0.75F), "gpt2", 2, {3, 85}, {3, 80});
  Vault living = Vault::attach({.job = "gpt2", .rank = 2, .directory = temp.path()});

  explicit Vaults(bool two_jobs = false) {
    put(living, {2, 0}, s80);
    put(living, {2, 1}, s85);
    auto dead =
        Vault::attach({.job = two_jobs ? "old" : "gpt2", .rank = 0, .directory = temp.path()});
    if (!two_jobs) {
      put(dead, {2, 1}, s85);
    } else {
      put(dead, {0, 0}, image_of(small_state(), "old", 0, {1, 5}));
    }
  }
  [[nodiscard]] std::string dir() const { return temp.path().string(); }
};

}  // namespace

TEST_CASE("ls lists slots and files with their owner, alive or dead") {
  const Vaults v;
  write_file(v.temp.path() / "gpt2.g000003.s000000000080.r00002of00004.own.safetensors",
             v.s80.bytes());
  const auto text = run({"ls", v.dir()});
  INFO(text.out << text.err);
  REQUIRE(text.code == 0);
  REQUIRE(contains(text.out, "alive"));
  REQUIRE(contains(text.out, "dead"));
  REQUIRE(contains(text.out, "replica at 0"));
  REQUIRE(contains(text.out, "gpt2/2@3.85:0"));
  REQUIRE(contains(text.out, "on disk"));
  const auto json = run({"ls", v.dir(), "--json"}).json();
  REQUIRE(json.at("vaults").size() == 2);
  REQUIRE(json.at("vaults")[0].at("owner_alive") == false);
  REQUIRE(json.at("vaults")[1].at("owner_alive") == true);
  REQUIRE(json.at("vaults")[1].at("slots")[1].at("step") == 85);
  REQUIRE(json.at("vaults")[1].at("slots")[1].at("state") == "sealed");
  REQUIRE(json.at("files").size() == 1);
  REQUIRE(run({"ls", v.dir(), "--job", "other", "--json"}).json().at("vaults").empty());
  const auto none = run({"ls", v.dir(), "--job", "other"}).out;
  REQUIRE(contains(none, "no vaults"));
  REQUIRE(contains(none, "in " + v.dir()));  // where it looked
  const auto missing = run({"inspect", "gpt2/9", "--in", v.dir()});
  REQUIRE(missing.code == 2);
  REQUIRE(contains(missing.err, "in " + v.dir() + "; --in DIR looks in another directory"));
}

TEST_CASE(
    "images of two runs of a job are told apart in ls, and each is opened by the name there") {
  constexpr std::uint64_t kOlder = (std::uint64_t{100} << 25U) + 3;
  constexpr std::uint64_t kNewer = (std::uint64_t{200} << 25U) + 3;
  const TempDirectory temp;
  auto vault = Vault::attach({.job = "gpt2", .rank = 2, .directory = temp.path()});
  put(vault, {2, 0}, image_of(small_state(), "gpt2", 2, {kOlder, 85}));
  put(vault, {2, 1}, image_of(small_state(0.75F), "gpt2", 2, {kNewer, 80}));
  const auto in = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--in", temp.path().string()});
    return run(std::move(arguments));
  };
  const auto text = run({"ls", temp.path().string()}).out;
  INFO(text);
  const std::string older = "gpt2/2@" + std::to_string(kOlder) + ".85";
  REQUIRE(contains(text, older));
  REQUIRE(contains(text, "gpt2/2@3.80"));
  REQUIRE(contains(text, "job gpt2 has images of 2 runs, which are never put together"));
  REQUIRE(contains(text, "the run begun at 2020-01-01 00:03:20 UTC: up to generation 3"));
  REQUIRE(in({"inspect", older, "--json"}).json().at("generation") == kOlder);
  REQUIRE(in({"inspect", "gpt2/2@3.80", "--json"}).json().at("generation") == kNewer);
  REQUIRE(in({"inspect", "gpt2/2", "--json"}).json().at("step") == 80);  // of the newer run
  // One run: nothing is said of it.
  const Vaults one;
  REQUIRE_FALSE(contains(run({"ls", one.dir()}).out, "runs"));
}

TEST_CASE("images in vaults are inspected, verified, compared and exported by name") {
  Vaults v;
  const auto in = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--in", v.dir()});
    return run(std::move(arguments));
  };
  const auto newest = in({"inspect", "gpt2/2", "--json"}).json();
  REQUIRE(newest.at("step") == 85);
  REQUIRE(newest.at("tensors") == 5);
  REQUIRE(in({"inspect", "gpt2/2@80", "--json"}).json().at("step") == 80);
  REQUIRE(in({"inspect", "gpt2/2@3.85:0", "--json"}).json().at("name") == "gpt2/2@3.85:0");
  REQUIRE(in({"inspect", "gpt2/2@80:0"}).code == 2);
  REQUIRE(in({"inspect", "gpt2/2@4.85"}).code == 2);

  REQUIRE(in({"diff", "gpt2/2@85", "gpt2/2@85:0"}).code == 0);
  const auto differ = in({"diff", "gpt2/2@80", "gpt2/2@85", "--json"});
  REQUIRE(differ.code == 1);
  REQUIRE(differ.json().at("first")[0].at("path") == "model.bias");
  REQUIRE(in({"diff", "gpt2/2@80", "gpt2/2@85", "--structure"}).code == 0);

  const auto out = (v.temp.path() / "out").string();
  REQUIRE(in({"export", "gpt2/2@80", "-o", out}).code == 0);
  REQUIRE(in({"diff", "gpt2/2@80", out}).code == 0);

  const auto both = in({"verify", "gpt2/2@85", "--json"});
  REQUIRE(both.code == 0);
  REQUIRE(both.json().at("images").size() == 2);  // every copy
  REQUIRE(run({"verify", v.dir(), "--json"}).json().at("images").size() == 3);
}

TEST_CASE("verify finds a flipped bit in a slot and names the tensor") {
  Vaults v;
  {
    auto damaged = v.s85;
    const auto index = SafetensorsIndex::parse(damaged.bytes());
    damaged.memory.data()[index.data_begin() + index.find("model.bias")->begin] ^= std::byte{4};
    put(v.living, {2, 1}, damaged);
  }
  const auto answer = run({"verify", "gpt2/2@85:2", "--in", v.dir()});
  INFO(answer.out << answer.err);
  REQUIRE(answer.code == 1);
  REQUIRE(contains(answer.out, "DAMAGED"));
  REQUIRE(contains(answer.out, "model."));
  REQUIRE(run({"verify", "gpt2/2@85:0", "--in", v.dir()}).code == 0);
}

TEST_CASE("a slot that is being written is skipped, and none by name") {
  Vaults v;
  const auto lease = v.living.begin_write({2, 0}, v.s80.info.identity, v.s80.info.image_bytes);
  const auto all = run({"verify", v.dir(), "--json"});
  REQUIRE(all.code == 0);
  REQUIRE(contains(all.out, "skipped"));
  REQUIRE(run({"inspect", "gpt2/2@80", "--in", v.dir()}).code == 2);
}

TEST_CASE("a slot overwritten after it was opened is noticed") {
  Vaults v;
  const auto vaults = list_vaults(v.temp.path());
  const auto opened = tools::open_slot(vaults.at(1), {2, 0}, tools::Content::kStructure);
  opened.slot->check_unchanged();
  put(v.living, {2, 0}, image_of(small_state(), "gpt2", 2, {3, 90}));
  REQUIRE_THROWS_AS(opened.slot->check_unchanged(), InvalidState);
}

TEST_CASE("clean removes what no living process owns, and only if somebody agrees") {
  Vaults v(true);
  const auto listed = run({"clean", v.dir()});
  INFO(listed.out);
  REQUIRE(listed.code == 1);  // nobody to ask
  REQUIRE(contains(listed.out, "job old"));
  REQUIRE_FALSE(contains(listed.out, "gpt2"));
  REQUIRE(list_vaults(v.temp.path()).size() == 2);

  std::string asked;
  REQUIRE(run({"clean", v.dir()}, [&](const std::string& q) {
            asked = q;
            return false;
          }).code == 1);
  REQUIRE(contains(asked, "Remove 1 vault of"));
  REQUIRE(list_vaults(v.temp.path()).size() == 2);
  REQUIRE(run({"clean", v.dir(), "--job", "other", "--yes"}).code == 0);
  REQUIRE(list_vaults(v.temp.path()).size() == 2);

  const auto removed = run({"clean", v.dir()}, [](const std::string&) { return true; });
  REQUIRE(removed.code == 0);
  REQUIRE(contains(removed.out, "removed 1 vault"));
  const auto left = list_vaults(v.temp.path());
  REQUIRE(left.size() == 1);
  REQUIRE(left[0].job == "gpt2");
  REQUIRE(left[0].slots.size() == 2);
  REQUIRE(contains(run({"clean", v.dir()}).out, "nothing to clean"));
  REQUIRE(run({"clean", v.dir()}).code == 0);
}

TEST_CASE("clean keeps the vault of a dead rank while other ranks of its job live") {
  const Vaults v;  // rank 0 is dead, rank 2 lives
  const auto answer = run({"clean", v.dir(), "--yes", "--json"});
  REQUIRE(answer.code == 0);
  REQUIRE(answer.json().at("removed").empty());
  REQUIRE(answer.json().at("kept").size() == 1);
  REQUIRE(list_vaults(v.temp.path()).size() == 2);
}
