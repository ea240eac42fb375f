// Why a generation ends: the part `losses` alone, and `listener`, which brings it lost links.
#include <string>
#include <vector>

#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/protocol/codec.hpp>

#include "tests/replicate/part_bench.hpp"
#include "tests/replicate/played_peers.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/store_keys.hpp"

namespace {

using namespace meshstage;
using namespace std::chrono_literals;
using protocol::Broken;
using protocol::Mode;
using protocol::StoreAnswered;
using test::InProcessJob;
using test::PartBench;
using test::PlayedLinks;
using test::soon;
using Found = StoreAnswered::Found;

constexpr auto kGeneration = PartBench::kGeneration;

}  // namespace

TEST_CASE("losses: the first death is the Store's, or else what this rank saw") {
  InProcessJob job(3);
  const bool noted = GENERATE(false, true);
  PartBench bench(job.options(0));
  if (noted) {
    job.store()->set(cause_key(InProcessJob::kName, kGeneration), encode_cause({2, "end of file"}),
                     soon());
  }
  bench.in_loop([&] {
    bench.losses.lost_link(1, LostReason::kEndOfFile, "end of file");
    bench.losses.lost_link(2, LostReason::kSilent, "for long");  // while the Store is asked
  });
  const auto fed = bench.next();
  const auto& broken = fed.as<Broken>();
  CHECK(broken.rank == (noted ? 2 : 1));
  CHECK(broken.kind == ErrorKind::kPeerLost);
  CHECK(broken.why == (noted ? "end of file" : "died: end of file"));
  CHECK(bench.nothing_fed());
}

TEST_CASE("losses: a Store that hangs, or is gone, keeps no rank from hearing of a death") {
  InProcessJob job(3);
  const bool hangs = GENERATE(false, true);
  PartBench bench(job.options(0));
  hangs ? bench.store->hang() : bench.store->fail();
  bench.in_loop([&] { bench.losses.lost_link(1, LostReason::kSilent, "for 5 s"); });
  const auto fed = bench.next();
  CHECK(fed.as<Broken>().rank == 1);
  CHECK(fed.as<Broken>().kind == ErrorKind::kPeerSilent);
  CHECK(fed.as<Broken>().why == "was silent: for 5 s");
  bench.store->go_on();
  CHECK(bench.nothing_fed());
  CHECK(bench.logs("cannot read the cause of a death"));
}

TEST_CASE("losses: which ends of links are a loss, and whose") {
  InProcessJob job(6);
  // Rank 0 has the children 1 and 2 in the tree; the wards and holders are other ranks.
  PartBench bench(job.options(0));
  bench.in_loop([&] { bench.losses.lost_link(5, LostReason::kClosed, ""); });
  CHECK(bench.nothing_fed());  // what it still had to say comes along the tree
  bench.in_loop([&] { bench.losses.lost_link(1, LostReason::kClosed, ""); });
  CHECK(bench.next().as<Broken>().why == "left the job");
  bench.in_loop([&] {
    bench.losses.enter();
    bench.losses.lost_link(5, LostReason::kProtocol, "no frame");
  });
  const auto fed = bench.next();
  CHECK(fed.as<Broken>().rank == -1);  // both ends live
  CHECK_THAT(fed.as<Broken>().why, contains_text("between rank 0 and rank 5: no frame"));
  bench.in_loop([&] {
    bench.losses.enter();
    bench.losses.close();
    bench.losses.lost_link(1, LostReason::kEndOfFile, "end of file");
  });
  CHECK(bench.nothing_fed());  // every rank has finished
}

TEST_CASE("losses: the root's question has each of its answers") {
  InProcessJob job(1);
  PartBench bench(job.options(0));
  const ImageId id{kGeneration, 5};
  const auto claim = [&](std::uint64_t number, const std::string& launch) {
    job.store()->set(test::claim_key(InProcessJob::kName, number), "1 " + launch + " 0 options",
                     soon());
  };
  const auto ask = [&] {
    bench.in_loop([&] { bench.losses.ask_store({id, true}); });
    return bench.next();
  };
  bench.in_loop([&] { bench.engine.state.mode = Mode::kReady; });
  claim(kGeneration, "first");
  CHECK(ask().as<StoreAnswered>().found == Found::kNewest);
  CHECK(replicate::read_notes(*job.store(), InProcessJob::kName, soon()).complete == id);

  bench.store->fail();
  const auto unanswered = ask();
  CHECK(unanswered.as<StoreAnswered>().found == Found::kNothing);
  CHECK_THAT(unanswered.as<StoreAnswered>().why, contains_text("the store is gone"));
  bench.in_loop([&] { bench.engine.state.mode = Mode::kRecovering; });
  CHECK_THAT(ask().called, contains_text("lose_store: cannot ask the Store"));
  bench.store->go_on();

  claim(kGeneration + 1, "first");
  CHECK(ask().as<StoreAnswered>().found == Found::kSuperseded);
  claim(kGeneration + 2, "second");
  const auto fenced = ask();
  CHECK(fenced.as<StoreAnswered>().found == Found::kFenced);
  CHECK_THAT(fenced.as<StoreAnswered>().why, contains_text("second"));
}

TEST_CASE("losses: the trainer throws the loss, and names who died or why this rank must end") {
  InProcessJob job(3);
  PartBench bench(job.options(0));
  const auto reported = [&](const protocol::ReportLost& action) {
    bench.engine.gate.open();
    bench.in_loop([&] { bench.losses.report(action); });
    return *bench.engine.gate.loss();
  };
  const auto other = reported({2, ErrorKind::kPeerSilent, "was silent"});
  CHECK(other.kind == ErrorKind::kPeerSilent);
  CHECK(other.rank == 2);
  CHECK_THAT(other.why, contains_text("rank 2 was silent"));
  const auto replaced = reported({0, ErrorKind::kPeerLost, "was silent"});
  CHECK(replaced.kind == ErrorKind::kFenced);
  CHECK_THAT(replaced.why, contains_text("end this process"));
  bench.in_loop([&] { bench.losses.lose_itself(ErrorKind::kIo, "no Store"); });
  CHECK(bench.next().as<Broken>().rank == 0);
  CHECK(reported({0, ErrorKind::kPeerLost, "no Store"}).kind == ErrorKind::kIo);
}

TEST_CASE("listener: whole messages of this generation are events, others are refused") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  PlayedLinks links;
  bench.listener.listen(links, false);
  const auto message = [&](std::uint64_t generation) {
    return protocol::with_digest(
        protocol::encode(bench.engine.wire, 1, {generation, protocol::Yes{{kGeneration, 3}, {}}}));
  };
  links.handlers.on_message(1, message(kGeneration));
  const auto fed = bench.next();
  CHECK(fed.as<protocol::Received>().from == 1);
  CHECK(std::holds_alternative<protocol::Yes>(fed.as<protocol::Received>().message.body));

  links.handlers.on_message(1, message(kGeneration - 1));
  CHECK(bench.nothing_fed());
  CHECK(bench.logs("generation 6, this is 7"));

  auto damaged = message(kGeneration);
  damaged[damaged.size() / 2] ^= std::byte{1};
  links.handlers.on_message(1, damaged);
  const auto broken = bench.next();
  CHECK(broken.as<Broken>().rank == -1);
  CHECK_THAT(broken.as<Broken>().why, contains_text("from rank 1 to rank 0 was damaged"));
}

TEST_CASE("listener: a lost link is a loss, the goodbye of a bridge is none") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  PlayedLinks bridge, links;
  bench.listener.listen(bridge, true);
  bench.listener.listen(links, false);
  bridge.handlers.on_lost(1, LostReason::kClosed, "");
  CHECK(bench.nothing_fed());
  links.handlers.on_lost(1, LostReason::kClosed, "");
  CHECK(bench.next().as<Broken>().why == "left the job");
  CHECK(links.handlers.alive());
  // What comes while the generation is left is nobody's.
  bench.engine.scope.close();
  links.handlers.on_lost(1, LostReason::kEndOfFile, "end of file");
  CHECK(bench.nothing_fed());
}
