// Well-framed messages and payloads that no correct rank sends: refused with an error that says
// which, nothing overwritten, and the job goes on.
#include <atomic>
#include <barrier>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <meshstage/core/protocol/codec.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/disk_contents.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/meddled_job.hpp"
#include "tests/support/rank_errors.hpp"

namespace {

namespace ms = meshstage;
namespace wire = meshstage::protocol;
using ms::test::Bytes;
using ms::test::MeddledJob;
using ms::test::recover_fresh;
using ms::test::recover_to;
using ms::test::stage_all;
using ms::test::stage_one;

struct Hostile {
  Bytes bytes;
  std::string refusal;  ///< Part of the line that refuses it.
};

/// A message of `from`, right in all that its body does not say.
class Forger {
 public:
  Forger(const MeddledJob& job, int from, std::uint64_t generation)
      : context_(job.wire_context()), from_(from), generation_(generation) {}

  [[nodiscard]] Bytes message(const wire::Body& body) const {
    return wire::encode(context_, from_, {generation_, body});
  }
  [[nodiscard]] Hostile with(std::size_t at, unsigned value, std::string refusal) const {
    Bytes bytes = message(wire::Ready{});
    bytes.at(at) = static_cast<std::byte>(value);
    return {std::move(bytes), std::move(refusal)};
  }
  [[nodiscard]] wire::StreamStart start() const {
    return {from_, {generation_, 2}, wire::Content::kImage, true, 8192, 4096, 4096, 0, 0};
  }
  [[nodiscard]] std::uint64_t generation() const { return generation_; }
  [[nodiscard]] int rank() const { return from_; }

 private:
  wire::WireContext context_;
  int from_;
  std::uint64_t generation_;
};

std::vector<Hostile> headers(const Forger& f) {
  std::vector<Hostile> all;
  all.push_back(f.with(0, 'X', "magic: not a control message"));
  all.push_back(f.with(4, 11, "version: 11, this library reads 10"));
  all.push_back(f.with(6, 99, "kind: 99 is unknown"));
  all.push_back(f.with(8, 0xEE, "job: another job's"));
  all.push_back(f.with(16, 7, "world size: 7, this job has"));
  all.push_back(f.with(20, 3, "sender: it says rank 3"));
  all.push_back(f.with(
      24, 200,
      "generation " + std::to_string((f.generation() & ~std::uint64_t{255}) | 200) + ", this is"));
  Bytes cut = f.message(wire::Yes{{f.generation(), 3}});
  cut.resize(cut.size() - 3);
  all.push_back({cut, "message yes from rank"});
  Bytes longer = f.message(wire::Ready{});
  longer.resize(longer.size() + 5);
  all.push_back({longer, "length: 5 bytes too many"});
  all.push_back({Bytes(16, std::byte{0x5A}), "magic"});
  all.push_back({Bytes(), "magic: the message ends before it"});
  return all;
}

/// Bodies that are wrong in one thing; steps 1 and 2 are complete, 2 is the base.
std::vector<Hostile> bodies(const Forger& f, bool from_parent) {
  const std::uint64_t g = f.generation();
  const ms::ImageId next{g, 3};
  const ms::ImageId base{g, 2};
  const wire::ImageSizes sizes{8192, 4096, {1, 2}};
  const wire::Failure another_cut{ms::ErrorKind::kStructureMismatch, 0, {}, "w", "placements"};
  wire::Claim claim;
  claim.world_size = 2;
  claim.id = {g, 2};
  claim.base = {g, 1};
  claim.sizes = sizes;
  const auto offer = [&](ms::ImageId id, ms::ImageId b, wire::ImageSizes s) {
    return f.message(wire::Offer{id, b, s});
  };
  std::vector<Hostile> all{
      {offer(next, next, sizes), "base: generation"},
      {offer({g + 5, 3}, base, sizes), "an offer of generation " + std::to_string(g + 5)},
      {offer({g, 9}, {g, 8}, sizes), "step 8, for which this rank never voted"},
      {offer({g, 9}, {g, 1}, sizes), "step 2 is complete"},
      {offer({g, 1}, ms::kNoImage, sizes), "an older step is complete"},
      {offer(next, base, {std::uint64_t{1} << 63U, 1, {}}), "image bytes: 9223372036854775808"},
      {offer(next, base, {100, 200, {}}), "manifest bytes: 200 is more than the image's 100"},
      {offer(next, base, {8192, 4096, {}, 4097, 1}), "borrowed bytes: 4097 is more"},
      {offer({0, 3}, ms::kNoImage, sizes), "id: no image has generation 0"},
      {f.message(wire::Sealed{{g, 44}, {1, 2}}), "the step is over"},
      {f.message(wire::Accept{{g, 44}, true}), "nothing of that step is to be sent"},
      {f.message(wire::Failed{next, 7, "x"}), "rank: rank 7 is not in [0, 2)"},
      {f.message(wire::Failed{{g + 1, 3}, 1, "x"}), "a round of generation"},
      {f.message(wire::Death{9, ms::ErrorKind::kPeerLost, "x"}), "rank: rank 9"},
      {f.message(wire::AskDisk{}), "ask-disk out of turn"},
      {f.message(wire::AskDisk{{}, base}), "ask-disk out of turn"},
      {f.message(wire::Publish{{{g, 1}, 3}, true}), "publish out of turn"},
      {f.message(wire::Publish{{{g, 2}, 2}, false, another_cut}), "publish out of turn"},
      {f.message(wire::Published{}), "published out of turn"},
      {f.message(wire::Choice{{g, 2}, {g, 1}, {{claim, 0}}}), "choice out of turn"},
      {f.message(wire::Ready{}), "ready out of turn"},
      {f.message(wire::Ready{another_cut}), "ready out of turn"},
      {f.message(wire::GiveUp{}), "give-up after the agreement"},
      {f.message(wire::Established{base}), "learned already"},
      {f.message(wire::Complete{{g, 99}}), from_parent ? "step 99, for which this rank never voted"
                                                       : "complete, but not from the parent"},
      {f.message(wire::AllOnDisk{base}), "all-on-disk"},
      {f.message(wire::Finish{}), "finish that this rank did not ask for"},
      {f.message(wire::Borrow{next, 100, {1, 2}}), "which is no borrower of this rank"},
      {f.message(wire::Differ{next}), "which is no lender of this rank"},
      {f.message(wire::Overdue{base, 1}), "an older step is complete"},
      {f.message(wire::Overdue{{g + 1, 3}, 1}), "a round of generation"},
      {f.message(wire::Overdue{ms::kNoImage, 1}), "the recovery is over"},
      {f.message(wire::Have{false, {claim}, base}), from_parent ? "no child" : "out of turn"},
  };
  if (from_parent) {
    all.push_back({f.message(wire::Yes{next}), "yes from rank 0, no child"});
    all.push_back({f.message(wire::OnDisk{base}), "on-disk from rank 0, no child"});
    all.push_back({f.message(wire::WantFinish{}), "want-finish from rank 0"});
  } else {
    all.push_back({f.message(wire::Yes{{g + 1, 3}}), "a round of generation"});
  }
  return all;
}

std::vector<Hostile> starts(const Forger& f) {
  std::vector<Hostile> all;
  const auto add = [&](auto&& change, const char* refusal) {
    auto start = f.start();
    change(start);
    all.push_back({f.message(start), refusal});
  };
  using Start = wire::StreamStart;
  add([](Start& s) { s.owner = 9; }, "owner: rank 9 is not in [0, 2)");
  add([](Start& s) { s.image_bytes = ~std::uint64_t{0}; }, "image bytes: 18446744073709551615");
  add([](Start& s) { s.block_bytes = 0; }, "block bytes: 0");
  add([](Start& s) { s.manifest_bytes = 9000; }, "manifest bytes: 9000");
  add([](Start&) {}, "which this rank did not ask for");
  add([](Start& s) { s.id = {1, 1}; }, "which this rank did not ask for");
  // Pieces that would not fit any memory, or whose list would not.
  add([](Start& s) { s.image_bytes = s.block_bytes = std::uint64_t{1} << 55U; },
      "which this rank did not ask for");
  add(
      [](Start& s) {
        s.image_bytes = std::uint64_t{1} << 56U;
        s.block_bytes = 1;
      },
      "which this rank did not ask for");
  Bytes bytes = f.message(f.start());
  bytes.resize(40);
  all.push_back({bytes, "stream-start from rank"});
  bytes = f.message(f.start());
  bytes[wire::kWireHeaderBytes + 20] = std::byte{2};
  all.push_back({bytes, "content: 2 is above 1"});
  bytes = f.message(f.start());
  bytes.resize(bytes.size() + 7);
  all.push_back({bytes, "length: 7 bytes too many"});
  add([](Start& s) { s.borrowed_bytes = 4097; }, "borrowed bytes: 4097 of an image of 8192");
  add([](Start& s) { s.content = wire::Content::kLent; }, "which this rank did not ask for");
  return all;
}

std::vector<Hostile> wants(const Forger& f) {
  std::vector<Hostile> all;
  const wire::Want want{{f.generation(), 2}, {{"model.weight", 20000}}};
  // Nobody borrows from anybody here, and nothing is being recovered.
  all.push_back({f.message(want), "to which this rank does not lend"});
  Bytes bytes = f.message(want);
  bytes.resize(bytes.size() + 3);
  all.push_back({bytes, "length: 3 bytes too many"});
  bytes.resize(39);
  all.push_back({bytes, "want from rank"});
  bytes = f.message(want);
  bytes[wire::kWireHeaderBytes + 16] = std::byte{200};
  all.push_back({bytes, "storages: 200 of them do not fit"});
  bytes = f.message(want);
  bytes[wire::kWireHeaderBytes + 20 + 7] = std::byte{0xFF};
  all.push_back({bytes, "storage's bytes: 18374686479671643680"});
  return all;
}

void append(std::vector<Hostile>& to, std::vector<Hostile> more) {
  for (auto& one : more) to.push_back(std::move(one));
}

}  // namespace

TEST_CASE("a message that is wrong in one thing is refused with that thing, and nothing changes") {
  MeddledJob job(2);
  std::barrier everyone(2);
  std::vector<std::string> missing(2);
  std::vector<int> changed(2);
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
    everyone.arrive_and_wait();
    const auto before = ms::test::read_all(job.disk(), "/vault");
    everyone.arrive_and_wait();
    // Both attack at once; each looks at what the other said of it.
    const int victim = 1 - rank;
    const Forger forger(job, rank, ckpt.generation());
    std::vector<Hostile> all = headers(forger);
    append(all, bodies(forger, rank == 0));
    append(all, starts(forger));
    append(all, wants(forger));
    for (const auto& hostile : all) job.meddler.inject(rank, victim, hostile.bytes);
    for (const auto& hostile : all) {
      if (!job.lines.wait_for(victim, hostile.refusal)) {
        missing[static_cast<std::size_t>(rank)] += hostile.refusal + "; ";
      }
    }
    everyone.arrive_and_wait();
    changed[static_cast<std::size_t>(rank)] =
        ms::test::read_all(job.disk(), "/vault") != before ? 1 : 0;
    everyone.arrive_and_wait();
    stage_all(ckpt, {3, 4});
    everyone.arrive_and_wait();
  });
  for (const auto& text : missing) CHECK(text == "");
  for (const int c : changed) CHECK(c == 0);
  job.live([&](int, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 4);
    ckpt.finish();
  });
}

TEST_CASE("thousands of random payloads behind a right header change nothing") {
  MeddledJob job(2);
  std::barrier everyone(2);
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    everyone.arrive_and_wait();
    const Forger forger(job, rank, ckpt.generation());
    std::mt19937_64 random(42U + static_cast<unsigned>(rank));
    for (int i = 0; i < 4000; ++i) {
      Bytes bytes = forger.message(wire::Ready{});
      bytes[6] = static_cast<std::byte>(random() % std::variant_size_v<wire::Body>);
      const std::size_t header = bytes.size();
      bytes.resize(header + 1 + random() % 300);
      for (std::size_t k = header; k < bytes.size(); ++k) {
        bytes[k] = static_cast<std::byte>(random());
      }
      job.meddler.inject(rank, 1 - rank, bytes);
    }
    stage_all(ckpt, {2, 3});
    everyone.arrive_and_wait();
    ckpt.finish();
  });
}

TEST_CASE("an image from a rank that exchanges none is refused") {
  // Of four ranks, 1 is a neighbour of 0 in the tree, but 0's partner is 2.
  MeddledJob job(4);
  std::barrier everyone(4);
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    if (rank == 1) {
      const Forger forger(job, 1, ckpt.generation());
      job.meddler.inject(1, 0, forger.message(forger.start()));
      job.meddler.inject(
          1, 0,
          forger.message(
              wire::Offer{{ckpt.generation(), 2}, {ckpt.generation(), 1}, {8192, 4096, {1, 2}}}));
      ms::test::require(job.lines.wait_for(0, "which this rank did not ask for"),
                        "no line about the start");
      ms::test::require(job.lines.wait_for(0, "offer from rank 1, no ward"),
                        "no line about the offer");
    }
    everyone.arrive_and_wait();
    stage_all(ckpt, {2});
    ckpt.finish();
  });
}

TEST_CASE("an offer of more bytes than there can be fails its step alone") {
  MeddledJob job(2);
  // Rank 1 offers step 2 with a size that no memory has.
  job.meddler.message = [](int from, int, Bytes& bytes) {
    if (from != 1 || bytes.size() < 64 || bytes[0] != std::byte{'M'} || bytes[3] != std::byte{'M'})
      return;
    if (bytes[6] != std::byte{0} || bytes[40] != std::byte{2}) return;
    const std::uint64_t huge = std::uint64_t{1} << 50U;
    std::memcpy(bytes.data() + 64, &huge, sizeof huge);
  };
  job.live([&](int, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    ms::test::require(stage_one(ckpt, 2) == ms::Outcome::kFailed, "step 2 did not fail");
    stage_all(ckpt, {3});
  });
  CHECK_THAT(job.lines.of(0),
             contains_text("cannot hold rank 1's replica of generation 1, step 2"));
}

TEST_CASE("a payload that changes on the wire fails its step; the one before is what comes back") {
  // A byte in the middle of rank 1's tensors; a byte of its manifest; a piece of another length.
  const std::string how = GENERATE("tensor", "manifest", "length");
  const unsigned connections = GENERATE(1U, 3U);
  MeddledJob job(2);
  job.connections = connections;
  std::atomic<bool> meddling{false};
  job.meddler.payload = [&](int from, int, Bytes& bytes) {
    if (!meddling || from != 1) return;
    const bool manifest =
        bytes.size() >= 9 && bytes[8] == std::byte{'{'} && bytes[9] == std::byte{'"'};
    if (how == "tensor" && !manifest) bytes[bytes.size() / 2] ^= std::byte{1};
    if (how == "manifest" && manifest) bytes[bytes.size() / 4] ^= std::byte{1};
    if (how == "length") bytes.resize(bytes.size() - 1);
  };
  std::barrier everyone(2);
  job.live([&](int, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 0);
    if (how != "manifest") stage_all(ckpt, {1});
    everyone.arrive_and_wait();
    meddling = true;
    ms::test::require(stage_one(ckpt, 2) == ms::Outcome::kFailed, "step 2 did not fail");
    everyone.arrive_and_wait();
    meddling = false;
    if (how == "length") return;  // what is left of the pieces is out of step: rejoin() is next
    stage_all(ckpt, {3});
  });
  const std::string said = job.lines.of(0);
  if (how == "tensor") {
    CHECK_THAT(said, contains_text("rank 1 of 2, generation 1, step 2: block"));
    CHECK_THAT(said, contains_text("it holds model."));
  } else if (how == "manifest") {
    CHECK_THAT(said, contains_text("step 2: the manifest does not match its digest"));
  } else {
    CHECK_THAT(said, contains_text("bytes met a target of"));
  }
  // A failed step may still be covered by the owners' own images: then it is the newest.
  std::vector<std::uint64_t> steps(2);
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    steps[static_cast<std::size_t>(rank)] = recover_fresh(ckpt).step;
    ckpt.finish();
  });
  CHECK(steps[0] == steps[1]);
  CHECK(steps[0] >= (how == "length" ? 1 : 3));
}

TEST_CASE("a fetched image that changes on the wire ends the recovery alike, the next one works") {
  const unsigned connections = GENERATE(1U, 3U);
  MeddledJob job(2);
  job.connections = connections;
  std::atomic<bool> meddling{false};
  job.meddler.payload = [&](int, int, Bytes& bytes) {
    if (meddling) bytes[bytes.size() / 2] ^= std::byte{1};
  };
  job.live([&](int, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
  });
  job.wipe(1);
  meddling = true;
  std::vector<std::string> said(2);
  std::barrier everyone(2);
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    ms::Dict state = ms::test::state_of(rank, 7);
    try {
      (void)ckpt.recover(state);
    } catch (const ms::CorruptData& e) {
      said[static_cast<std::size_t>(rank)] = e.what();
    }
    ms::test::require(ms::test::difference(state, ms::test::state_of(rank, 7)).empty(),
                      "the trainer's state was touched");
    everyone.arrive_and_wait();
    meddling = false;
    everyone.arrive_and_wait();
    (void)recover_to(ckpt.rejoin(), 2);
    ckpt.finish();
  });
  for (const auto& text : said) CHECK_THAT(text, contains_text("generation 1, step 2"));
}

namespace {

/// Rank 0 has "both" too.
ms::Dict borrowing_state(int rank, std::uint64_t step) {
  return {{"both", ms::test::state_of(0, step).at("model").at("bias")},
          {"own", ms::test::state_of(rank, step)}};
}

void recover_borrowing(ms::Checkpointer& ckpt, std::uint64_t step) {
  ms::Dict state = borrowing_state(ckpt.rank(), 0);
  ms::test::require(ckpt.recover(state).step == step, "recovered another step");
  const auto different = ms::test::difference(state, borrowing_state(ckpt.rank(), step));
  ms::test::require(different.empty(), "recovered another state: " + different);
}

}  // namespace

TEST_CASE("a want for what a rank has not ends the recovery alike, the next one works") {
  const auto [what, refusal] = GENERATE(table<std::string, std::string>(
      {{"name", "rank 0 has no coth of 20000 bytes in its image of generation 1, step 2"},
       {"size", "rank 0 has no both of 19999 bytes"},
       {"step",
        "rank 1 wants what it borrows of generation 1, step 1, not of generation 1, step 2"}}));
  MeddledJob job(2);
  job.borrowed.lenders = {{}, {0}};
  job.borrowed.paths = [](const ms::Value&, int, int) { return std::vector<std::string>{"both"}; };
  std::atomic<int> meddled{0};
  std::atomic<bool> meddling{false};
  job.meddler.message = [&, how = what](int from, int to, Bytes& bytes) {
    if (!meddling || from != 1 || to != 0) return;
    auto message = wire::decode(job.wire_context(), from, bytes);
    if (!std::holds_alternative<wire::Want>(message.body)) return;
    auto& want = std::get<wire::Want>(message.body);
    auto& storage = want.storages.at(0);
    if (how == "name") storage.name = "coth";
    if (how == "size") storage.bytes -= 1;
    if (how == "step") want.id.step = 1;
    bytes = wire::encode(job.wire_context(), from, message);
    ++meddled;
  };
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    recover_borrowing(ckpt, 0);
    for (const std::uint64_t step : {1U, 2U}) {
      auto staging = ckpt.stage(borrowing_state(rank, step), step);
      ms::test::require(staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20))) ==
                            ms::Outcome::kComplete,
                        "a step failed");
    }
    ms::test::require(rank != 1 || ckpt.stats().replica_bytes_borrowed > 0, "nothing was borrowed");
  });
  job.wipe(1);
  meddling = true;
  std::vector<std::string> said(2);
  std::barrier everyone(2);
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    ms::Dict state = borrowing_state(rank, 7);
    try {
      (void)ckpt.recover(state);
    } catch (const ms::CorruptData& e) {
      said[static_cast<std::size_t>(rank)] = e.what();
    }
    ms::test::require(ms::test::difference(state, borrowing_state(rank, 7)).empty(),
                      "the trainer's state was touched");
    everyone.arrive_and_wait();
    meddling = false;
    everyone.arrive_and_wait();
    recover_borrowing(ckpt.rejoin(), 2);
    ckpt.finish();
  });
  CHECK(meddled == 1);
  for (const auto& text : said) CHECK_THAT(text, contains_text(refusal));
}
