// The connection that images travel on ends, while the control links still stand: all ranks hear of
// a loss, nobody waits for an image that will not come, and the next generation has the bytes.
#include <atomic>
#include <barrier>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/meddled_job.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/require.hpp"

namespace {

namespace ms = meshstage;
using ms::test::MeddledJob;
using ms::test::Meddler;
using ms::test::recover_to;
using ms::test::stage_all;
using ms::test::stage_one;
using ms::test::state_of;

/// The `nth` receive at rank 1 finds its connection ended, as Gloo tells it.
void end_connection(Meddler& meddler, std::atomic<int>& nth) {
  meddler.before_receive = [&nth](int at, int from, const std::string&) {
    if (at == 1 && --nth == 0) throw ms::make_error<ms::PeerLost>("connection reset", from);
  };
}

/// What the rank makes of a loss: rank 1 has seen it, and names its sender; that one is told that
/// the others go on without it.
void expect_loss(int rank, const std::function<void()>& call) {
  try {
    call();
  } catch (const ms::PeerLost& e) {
    if (rank == 0 || e.rank() != 0) throw;
    return;
  } catch (const ms::Fenced&) {
    if (rank != 0) throw;
    return;
  }
  ms::test::fail_test("no loss was reported");
}

}  // namespace

TEST_CASE("a connection that ends under a fetched image ends the recovery of all ranks") {
  const unsigned connections = GENERATE(1U, 3U);
  const int piece = GENERATE(1, 3);
  MeddledJob job(2);
  job.connections = connections;
  std::atomic<int> nth{0};
  end_connection(job.meddler, nth);
  std::barrier everyone(2);
  job.live([&](int, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
    everyone.arrive_and_wait();
  });
  job.wipe(1);
  nth = piece;
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    ms::Dict state = state_of(rank, 9);
    expect_loss(rank, [&] { (void)ckpt.recover(state); });
    ms::test::require(ms::test::difference(state, state_of(rank, 9)).empty(),
                      "the trainer's state was touched");
    (void)recover_to(ckpt.rejoin(), 2);
    ckpt.finish();
  });
}

TEST_CASE(
    "a connection that ends under a replica ends the generation: no step after it would hold") {
  const unsigned connections = GENERATE(1U, 3U);
  // Over three connections the first twelve receives are of notes.
  const int receive = GENERATE(2, 7, 14);
  if (connections == 1 && receive > 2) return;  // no step has so many
  MeddledJob job(2);
  job.connections = connections;
  std::atomic<int> nth{0};
  end_connection(job.meddler, nth);
  std::barrier everyone(2);
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
    everyone.arrive_and_wait();
    if (rank == 0) nth = receive;
    everyone.arrive_and_wait();
    expect_loss(rank, [&] { (void)stage_one(ckpt, 3); });
    const auto step = ms::test::recover_fresh(ckpt.rejoin()).step;
    ms::test::require(step >= 2, "an older step");
    stage_all(ckpt, {step + 1});
    ckpt.finish();
  });
}
