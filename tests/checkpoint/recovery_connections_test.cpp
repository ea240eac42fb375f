// In a recovery the trainer waits, so its images may go over more connections than those of a
// round.
#include <barrier>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <variant>

#include "tests/support/catch.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/meddled_job.hpp"
#include "tests/support/require.hpp"

namespace {

namespace ms = meshstage;
using ms::test::MeddledJob;
using ms::test::recover_to;
using ms::test::require;
using ms::test::stage_all;
using Names = std::set<std::string>;

/// The groups in which images came. Threads: any.
class Used {
 public:
  explicit Used(ms::test::Meddler& meddler) {
    meddler.before_receive = [this](int, int, const std::string& group) {
      const std::lock_guard lock(mutex_);
      names_.insert(group);
    };
  }
  /// Since the last call.
  Names take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(names_, {});
  }

 private:
  std::mutex mutex_;
  Names names_;
};

}  // namespace

TEST_CASE("a recovery uses all connections, a round those that the trainer can spare") {
  MeddledJob job(2);
  job.adjust = [](ms::CheckpointerOptions& o) {
    o.connections = o.environment->rank == 0 ? 1 : 3;  // of two ranks the smaller number counts
    o.recovery_connections = 3;
  };
  Used used(job.meddler);
  std::barrier everyone(2);
  job.live([&](int, ms::Checkpointer& ckpt) {
    require(ckpt.stats().connections == 1, "connections of a round");
    require(ckpt.stats().recovery_connections == 3, "connections of a recovery");
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1, 2});
    everyone.arrive_and_wait();
  });
  CHECK(used.take() == Names{"data"});
  job.wipe(1);
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 2);
    everyone.arrive_and_wait();
    if (rank == 0) require(used.take() == Names{"data", "data-1", "data-2"}, "of the recovery");
    everyone.arrive_and_wait();
    stage_all(ckpt, {3});
    ckpt.finish();
  });
  CHECK(used.take() == Names{"data"});
}

TEST_CASE("recoveries have at least the connections of a round, and never more than 16") {
  MeddledJob job(2);
  job.connections = 4;
  job.adjust = [](ms::CheckpointerOptions& o) { o.recovery_connections = 2; };
  job.live([&](int, ms::Checkpointer& ckpt) {
    require(ckpt.stats().recovery_connections == 4, "connections of a recovery");
    (void)recover_to(ckpt, 0);
    ckpt.finish();
  });
  auto options = job.options(0);
  options.recovery_connections = 17;
  CHECK_THROWS_WITH(ms::Checkpointer(options),
                    contains_text("recovery_connections is 17; the maximum is 16"));
}

TEST_CASE("a sender that means to use more connections than there are ends the generation") {
  MeddledJob job(2);
  job.meddler.message = [&](int from, int, ms::test::Bytes& bytes) {
    if (from != 1) return;
    auto message = ms::protocol::decode(job.wire_context(), from, bytes);
    auto* const start = std::get_if<ms::protocol::StreamStart>(&message.body);
    if (start == nullptr || start->id.step != 2) return;
    start->connections = 2;
    bytes = ms::protocol::encode(job.wire_context(), from, message);
  };
  job.live([&](int rank, ms::Checkpointer& ckpt) {
    (void)recover_to(ckpt, 0);
    stage_all(ckpt, {1});
    std::string loss;
    try {
      (void)ms::test::stage_one(ckpt, 2);
    } catch (const ms::Error& e) {
      loss = e.what();
    }
    const std::string why = "rank 1 sends over 2 connections; there are 1";
    require(rank == 0 ? loss.find(why) != std::string::npos : !loss.empty(), "told: " + loss);
  });
}
