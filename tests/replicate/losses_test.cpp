// Why a generation ends: the part `losses` alone, and `listener`, which brings it lost links.
#include <exception>
#include <memory>
#include <new>
#include <stop_token>
#include <string>
#include <utility>
#include <variant>
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
using test::InProcessJob;
using test::PartBench;
using test::PlayedLinks;
using test::PlayedPeers;
using test::soon;

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
  bench.in_loop([&] { bench.losses.lose_store("no Store"); });
  CHECK(bench.next().as<Broken>().rank == 0);
  CHECK(reported({0, ErrorKind::kPeerLost, "no Store"}).kind == ErrorKind::kIo);
}

TEST_CASE("losses: this rank ends the generation without its Store, or without its vault") {
  InProcessJob job(1);
  PartBench bench(job.options(0));
  bench.in_loop([&] { bench.losses.lose_store("no Store"); });
  CHECK(bench.next().as<Broken>().why == "no Store");
  bench.in_loop([&] { bench.losses.lose_vault("pid 7 has it"); });
  CHECK(bench.next().as<Broken>().why == "was fenced: pid 7 has it");
  bench.in_loop([&] { bench.losses.report({0, ErrorKind::kPeerLost, "was fenced"}); });
  CHECK(bench.engine.gate.loss()->kind == ErrorKind::kFenced);
  CHECK(bench.engine.gate.loss()->why == "pid 7 has it");
}

TEST_CASE("losses: a transfer that ends is a loss until this rank has called finish()") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  const bool finishing = GENERATE(false, true);
  bench.in_loop([&] {
    bench.engine.state.wants_finish = finishing;
    bench.losses.lose_in_transfer(1, ErrorKind::kPeerLost, "closed its group");
  });
  if (!finishing) CHECK(bench.next().as<Broken>().why == "closed its group");
  CHECK(bench.nothing_fed());
}

TEST_CASE("losses: when the generation broke, transfers end and nothing waits for a slot") {
  InProcessJob job(2);
  PartBench bench(job.options(0));
  PlayedPeers peers(job, bench, {1});
  std::vector<std::byte> memory(8);
  const auto transfer = bench.engine.generation.data->receive(1, 0, memory);
  const auto cause = [&] {
    try {
      transfer->wait(soon());
      return std::string("it came");
    } catch (const PeerLost& e) {
      return e.message();
    }
  };
  bool free = false, again = false;
  bench.in_loop([&] {
    bench.slots.when_free([&] { return std::exchange(again, true) && free; });
    bench.losses.abort_transfers();
    free = true;
    again = false;
    bench.slots.retry();
  });
  CHECK(cause() == "the generation broke");
  CHECK_FALSE(again);
}

TEST_CASE("losses: what no part expects ends the generation for every rank, or else for this one") {
  InProcessJob job(1);
  PartBench bench(job.options(0));
  const auto fail = [&] {
    bench.in_loop([&] { bench.losses.failed(std::make_exception_ptr(std::bad_alloc())); });
  };
  SECTION("the protocol ends it") {
    bench.on_fed = [&](const protocol::Event& event) {
      bench.losses.report({-1, ErrorKind::kPeerLost, std::get<Broken>(event).why});
    };
    fail();
    CHECK_THAT(bench.next().as<Broken>().why, contains_text("rank 0 cannot go on: "));
    CHECK(bench.logs("rank 0 cannot go on: "));
    CHECK_THAT(bench.engine.gate.loss()->why, contains_text("rank 0 cannot go on: "));
    CHECK(bench.engine.state.mode != Mode::kBroken);  // the protocol's to set, which none plays
  }
  SECTION("a transition had begun, so the event does not come to the protocol") {
    fail();
    CHECK(bench.next().as<Broken>().rank == -1);
    CHECK(bench.engine.gate.is_lost());
    CHECK(bench.engine.state.mode == Mode::kBroken);
  }
  SECTION("the job has finished: finish() returns, and the vault stays") {
    bench.in_loop([&] { bench.engine.state.mode = Mode::kFinished; });
    fail();
    bench.engine.gate.wait_finished(soon());
    CHECK(bench.logs("the vault may stay in /vault"));
    CHECK_FALSE(bench.engine.gate.is_lost());
  }
  SECTION("outside a generation there is nothing to end") {
    bench.in_loop([&] { bench.engine.present = 0; });
    fail();
    CHECK_FALSE(bench.engine.gate.is_lost());
  }
  CHECK(bench.nothing_fed());
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

TEST_CASE("listener: bridges are listened to once they are there; without them nothing goes on") {
  InProcessJob job(4);
  PartBench bench(job.options(0));
  const auto links = std::make_shared<PlayedLinks>(std::vector<int>{3});
  const bool fails = GENERATE(false, true);
  bench.engine.generation.connect_pairs = [&](const auto& peers, Deadline, std::stop_token) {
    if (fails || peers != std::vector<int>{3}) throw Timeout("nobody there");
    return Pairs{links, nullptr};
  };
  bench.in_loop([&] { bench.listener.connect({{3}}); });
  const auto fed = bench.next();
  if (fails) {
    CHECK(fed.as<Broken>().rank == -1);
    CHECK_THAT(fed.as<Broken>().why,
               contains_text("rank 0 cannot connect to what has its images, rank 3: "));
    CHECK_THAT(fed.as<Broken>().why, contains_text("nobody there"));
    return;
  }
  (void)fed.as<protocol::Connected>();
  links->handlers.on_lost(3, LostReason::kClosed, "");  // it has what it fetched
  CHECK(bench.nothing_fed());
  links->handlers.on_lost(3, LostReason::kEndOfFile, "end of file");
  CHECK(bench.next().as<Broken>().rank == 3);
}
