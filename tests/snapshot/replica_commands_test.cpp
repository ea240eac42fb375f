// The commands on replicas, which lack what other ranks have too.
#include <meshstage/core/image/safetensors.hpp>

#include "tests/snapshot/snapshot_support.hpp"
#include "tests/support/borrowing.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

/// Vaults of ranks 1 and 2 of job "job": rank 2's image of step 85, and its replica at rank 1.
struct Vaults {
  TempDirectory temp;
  TestImage image = borrowing_image();
  Storage replica = replica_of(image);
  Vault holder = Vault::attach({.job = "job", .rank = 1, .directory = temp.path()});
  Vault owner = Vault::attach({.job = "job", .rank = 2, .directory = temp.path()});

  explicit Vaults(bool with_own = true) {
    put(holder, {2, 0}, image.info, replica.bytes());
    if (with_own) put(owner, {2, 0}, image);
  }
  [[nodiscard]] Answer in(std::vector<std::string> arguments) const {
    arguments.insert(arguments.end(), {"--in", temp.path().string()});
    return run(std::move(arguments));
  }
};

}  // namespace

TEST_CASE("ls shows what a replica takes, and verify checks what is in it") {
  const Vaults v;
  const auto json = run({"ls", v.temp.path().string(), "--json"}).json();
  const auto& held = json.at("vaults")[0].at("slots")[0];
  REQUIRE(held.at("name") == "job/2@3.85:1");
  REQUIRE(held.at("image_bytes") == v.image.info.image_bytes);
  REQUIRE(held.at("stored_bytes") == v.replica.nbytes());
  REQUIRE(json.at("vaults")[1].at("slots")[0].at("stored_bytes") == v.image.info.image_bytes);

  const auto answer = v.in({"verify", "job/2@85:1", "--json"});
  INFO(answer.out << answer.err);
  REQUIRE(answer.code == 0);
  REQUIRE(answer.json().at("images").size() == 1);
  REQUIRE(answer.json().at("images")[0].at("bytes") == v.replica.nbytes());
  REQUIRE(contains(answer.out, "without borrowed tensors"));
  REQUIRE(v.in({"verify", "job/2@85", "--json"}).json().at("images").size() == 2);
}

TEST_CASE("verify finds a flipped bit in a replica, and a replica with another header") {
  Vaults v;
  SECTION("a tensor's") {
    const auto index = SafetensorsIndex::parse(v.image.bytes());
    const auto at = index.data_begin() + index.find("own")->begin + 10;
    v.replica.data()[at - v.image.info.borrowed_bytes] ^= std::byte{4};
  }
  SECTION("the trailer's") { v.replica.data()[v.replica.nbytes() - 100] ^= std::byte{4}; }
  SECTION("the manifest's") { v.replica.data()[100] ^= std::byte{4}; }
  SECTION("another step's replica under this one's header") {
    v.replica = replica_of(make_image(borrowing_state(), 4096, 90, borrowed_names()));
  }
  put(v.holder, {2, 0}, v.image.info, v.replica.bytes());
  const auto answer = run({"verify", v.temp.path().string()});
  INFO(answer.out << answer.err);
  REQUIRE(answer.code == 1);
  REQUIRE(contains(answer.out, "DAMAGED"));
  REQUIRE(contains(answer.out, "job/2@3.85:1"));
  REQUIRE(contains(answer.out, "1 ok"));
}

TEST_CASE("inspect says which tensors are not in a replica, and who has them") {
  const Vaults v;
  const auto json = v.in({"inspect", "job/2@85:1", "--json"}).json();
  REQUIRE(json.at("replica_without_borrowed") == true);
  REQUIRE(json.at("borrowed").size() == 2);
  REQUIRE(json.at("borrowed")[0].at("rank") == 0);
  REQUIRE(json.at("borrowed")[0].at("storages")[1].at("name") == "both.b");
  REQUIRE(json.at("borrowed")[1].at("storages")[0].at("bytes") == 4096);
  std::vector<std::string> left;
  for (const auto& e : json.at("entries")) {
    if (e.contains("lender"))
      left.push_back(e.at("path").get<std::string>() + ":" +
                     std::to_string(e.at("lender").get<int>()));
  }
  REQUIRE(left == std::vector<std::string>{"both.b:0", "both.a:0", "last:3"});
  const auto text = v.in({"inspect", "job/2@85:1"});
  INFO(text.out);
  REQUIRE(contains(text.out, "2 storages of"));
  REQUIRE(contains(text.out, "borrowed from rank 0, not in this replica"));
  REQUIRE(contains(text.out, "not here: borrowed from rank 3"));

  const auto own = v.in({"inspect", "job/2@85", "--json"}).json();
  REQUIRE(own.at("name") == "job/2@3.85");
  REQUIRE(own.at("replica_without_borrowed") == false);
  REQUIRE(own.at("borrowed").size() == 2);
  REQUIRE_FALSE(contains(own.dump(), "lender"));
  REQUIRE(
      contains(v.in({"inspect", "job/2@85"}).out, "borrowed from rank 3, left out of replicas"));
}

TEST_CASE(
    "diff and export refuse a replica that lacks something in one line, and take a whole copy") {
  const auto out = [](const Vaults& v) { return (v.temp.path() / "out").string(); };
  {
    const Vaults v(false);
    for (const auto& answer :
         {v.in({"export", "job/2@85", "-o", out(v)}), v.in({"diff", "job/2@85:1", "job/2@85:1"})}) {
      INFO(answer.err);
      REQUIRE(answer.code == 2);
      REQUIRE(answer.out.empty());
      REQUIRE(std::count(answer.err.begin(), answer.err.end(), '\n') == 1);
      REQUIRE(contains(answer.err, "job/2@3.85:1 is a replica without both.a and 1 more"));
      REQUIRE(contains(answer.err, "which rank 0 has, and without last"));
      REQUIRE(contains(answer.err, "which rank 3 has; name rank 2's own image (job/2@3.85"));
    }
    REQUIRE_FALSE(std::filesystem::exists(out(v)));
    REQUIRE(v.in({"diff", "job/2@85:1", "job/2@85:1", "--structure"}).code == 0);
    // A file of the whole image is preferred to the replica in memory.
    write_file(v.temp.path() / "job.g000003.s000000000085.r00002of00004.own.safetensors",
               v.image.bytes());
    REQUIRE(v.in({"export", "job/2@85", "-o", out(v)}).code == 0);
  }
  const Vaults v;
  REQUIRE(v.in({"export", "job/2", "-o", out(v)}).code == 0);
  REQUIRE(v.in({"diff", "job/2@85", out(v)}).code == 0);
  REQUIRE(v.in({"diff", "job/2@85", "job/2@85:1"}).code == 2);
}
