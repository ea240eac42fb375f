// Many real ranks form one generation on this machine: each connects to a few, however many there
// are.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <sstream>
#include <vector>

#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/comm/tcp_store/server.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/sanitized.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using meshstage::test::kSanitized;

struct Formed {
  long milliseconds = 0;
  std::size_t most_links = 0, most_sockets = 0;
};

long now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Formed form(const std::string& address, int world) {
  const auto store = open_store(address);
  std::vector<std::unique_ptr<WorkerProcess>> workers;
  for (int r = 0; r < world; ++r) {
    workers.push_back(std::make_unique<WorkerProcess>(
        own_folder() + "/forming_worker",
        std::vector{address, std::to_string(r), std::to_string(world)}));
  }
  for (int r = 0; r < world; ++r) {
    (void)store->wait_for("here/" + std::to_string(r), Deadline::after(120s));
  }
  const long start = now_ms();
  store->set("go", "");
  Formed result;
  for (int r = 0; r < world; ++r) {
    std::istringstream text(store->wait_for("formed/" + std::to_string(r), Deadline::after(60s)));
    int generation = 0;
    long when = 0;
    std::size_t links = 0, sockets = 0;
    text >> generation >> when >> links >> sockets;
    CHECK(generation >= 1);
    result.milliseconds = std::max(result.milliseconds, when - start);
    result.most_links = std::max(result.most_links, links);
    result.most_sockets = std::max(result.most_sockets, sockets);
  }
  for (auto& w : workers) w->end_input();
  for (auto& w : workers) CHECK(w->finish() == 0);
  std::cout << world << " ranks formed a generation in " << result.milliseconds << " ms over "
            << address.substr(0, address.find(':')) << "; links of one rank: at most "
            << result.most_links << ", sockets: at most " << result.most_sockets << "\n";
  return result;
}

/// A parent, two children, one holder that is the ward as well: links to each, a data connection to
/// the holder, and training connections to the tree's neighbours. Two more are the Store's.
void few(const Formed& formed) {
  CHECK(formed.most_links <= 4);
  CHECK(formed.most_sockets <= 4 + 1 + 3 + 3);
}

}  // namespace

TEST_CASE("64 ranks form a generation over a file store, each connected to a few") {
  const TemporaryFolder folder;
  const auto formed = form("file:" + folder.path() + "/store", 64);
  few(formed);
  if (!kSanitized) CHECK(formed.milliseconds < 30000);
}

TEST_CASE("64 ranks form a generation over a tcp store, each connected to a few") {
  const StoreServer server({});
  const auto formed = form(server.address(), 64);
  few(formed);
  if (!kSanitized) CHECK(formed.milliseconds < 30000);
}
