#include <memory>
#include <string>
#include <vector>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage::testing;

TEST_CASE("four processes redistribute over Gloo as the definition says") {
  const TemporaryFolder folder;
  std::vector<std::unique_ptr<WorkerProcess>> workers;
  for (int r = 0; r < 4; ++r) {
    workers.push_back(std::make_unique<WorkerProcess>(
        own_folder() + "/dtensor_gloo_worker", std::vector{folder.path(), std::to_string(r)}));
  }
  std::vector<int> statuses;
  for (auto& w : workers) statuses.push_back(w->finish());
  CHECK(statuses == std::vector<int>(4, 0));
}
