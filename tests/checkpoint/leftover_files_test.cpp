// A job with so many leftover files that the claims to them do not fit a message.
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tests/replicate/part_images.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/narrow_messages.hpp"
#include "tests/support/rank_errors.hpp"
#include "tests/support/watched_file_system.hpp"

namespace ms = meshstage;
using namespace meshstage::test;

namespace {

/// Leaves rank `owner`'s image of a step, as rank `writer` of 2 writes it.
void leave_step(InProcessJob& job, int owner, int writer, std::uint64_t step) {
  leave_file(job.disk(), writer, image_of_step(owner, 2, {1, step}));
}

}  // namespace

TEST_CASE("a step on disk below more files than fit a message is recovered; each is read once") {
  InProcessJob job(2);
  NarrowMessages narrow(2, 3);
  for (const std::uint64_t step : {3, 4}) {
    leave_step(job, 0, 0, step);
    leave_step(job, 1, 1, step);
  }
  for (std::uint64_t step = 5; step < 14; ++step) leave_step(job, 1, 1, step);
  leave_step(job, 0, 1, 14);        // of the newest step there is rank 0's image alone
  std::map<std::string, int> left;  // by rank and name: how often it is read
  for (const auto& image : ms::list_images(job.disk(), "/disk", InProcessJob::kName)) {
    if (image.name.id.step == 4) continue;  // read once more, into memory
    for (const int rank : {image.name.rank, image.name.writer()}) {
      left[std::to_string(rank) + image.path.string()] = 0;
    }
  }
  std::mutex mutex;
  all_good(run_ranks(all_ranks(2), [&](int rank) {
    auto options = job.options(rank);
    narrow.attach(options);
    WatchedFileSystem disk(*options.file_system);
    disk.on_map = [&, rank](const auto& path) {
      const std::lock_guard lock(mutex);
      const auto it = left.find(std::to_string(rank) + path.string());
      if (it != left.end()) ++it->second;
    };
    options.file_system = &disk;
    ms::Checkpointer ckpt(std::move(options));
    const auto recovered = recover_to(ckpt, 4);
    require(recovered.source == ms::Source::kDisk, "not from disk");
    stage_all(ckpt, {5});
    ckpt.finish();
  }));
  const auto asked = narrow.asked();
  REQUIRE(asked.size() > 3);
  CHECK_FALSE(asked[0].up_to.exists());
  for (std::size_t i = 2; i < asked.size(); ++i) CHECK(asked[i].up_to < asked[i - 1].up_to);
  REQUIRE(left.size() == 13);
  for (const auto& [file, times] : left) {
    CAPTURE(file);
    CHECK(times == 1);
  }
}

TEST_CASE("files of which no step is whole, and more than fit a message: the ranks are named") {
  InProcessJob job(2);
  NarrowMessages narrow(2, 3);
  for (std::uint64_t step = 5; step < 14; ++step) leave_step(job, 1, 1, step);
  for (const auto& error : run_ranks(all_ranks(2), [&](int rank) {
         auto options = job.options(rank);
         narrow.attach(options);
         ms::Checkpointer ckpt(std::move(options));
         (void)recover_to(ckpt, 0);
       })) {
    CHECK_THAT(error, contains_text("no step has an image of every rank any more"));
    CHECK_THAT(error, contains_text("missing in memory and on disk: rank 0"));
  }
}
