// A byte of a control message changes on its way: whatever the message was, it is noticed, and the
// job goes on in a new generation with the same bytes.
#include <atomic>
#include <set>
#include <string>
#include <vector>

#include <meshstage/core/protocol/codec.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/meddled_job.hpp"

namespace {

namespace ms = meshstage;
namespace wire = meshstage::protocol;
using ms::test::all_good;
using ms::test::all_ranks;
using ms::test::Bytes;
using ms::test::MeddledJob;
using ms::test::recover_fresh;
using ms::test::run_ranks;
using ms::test::stage_all;

}  // namespace

TEST_CASE(
    "a control message of any kind that is damaged on its way ends the generation, not the job") {
  // One byte of the n-th control message of a life with a recovery, for each n: each kind.
  // The last one tells that all were gone through.
  std::set<std::string> kinds;
  std::uint64_t damaged = 0;
  for (std::uint64_t nth = 1;; ++nth) {
    INFO("message " << nth);
    MeddledJob job(3);
    std::atomic<std::uint64_t> sent{0};
    std::string kind;
    job.meddler.on_the_way = [&](int from, int, Bytes& bytes) {
      const auto message = *wire::without_digest(bytes);
      const std::string name = wire::name_of(wire::decode(job.wire_context(), from, message).body);
      // Who has heard that all finish is gone: no generation can follow.
      if (name.find("finish") != std::string::npos || ++sent != nth) return;
      kind = name;
      bytes[(nth * 7919) % bytes.size()] ^= std::byte{4};
    };
    std::vector<int> broken(3);
    all_good(run_ranks(all_ranks(3), [&](int rank) {
      auto o = job.options(rank);
      o.persist_every = 0;
      ms::Checkpointer ckpt(std::move(o));
      std::uint64_t step = 0;
      bool again = false;
      for (;;) try {
          step = recover_fresh(again ? ckpt.rejoin() : ckpt).step;
          while (step < 3) stage_all(ckpt, {++step});
          ckpt.finish();
          return;
        } catch (const ms::PeerLost& e) {
          if (e.rank() || std::string(e.what()).find("was damaged on its way") == std::string::npos)
            throw;
          again = true;
          ++broken[static_cast<std::size_t>(rank)];
        }
    }));
    if (sent < nth) break;
    CHECK(kind != "");
    kinds.insert(kind);
    damaged += broken[0] + broken[1] + broken[2] > 0 ? 1 : 0;
  }
  for (const char* kind : {"offer", "accept", "sealed", "yes", "complete", "have", "ask-disk",
                           "choice", "ready", "established", "stream-start"}) {
    CHECK(kinds.contains(kind));
  }
  CHECK(damaged > 40);
}
