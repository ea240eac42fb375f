// `meshstage store`: its arguments, and the program itself.
#include <csignal>
#include <memory>
#include <sstream>

#include <meshstage/core/comm/tcp_store/server.hpp>
#include <meshstage/core/comm/tcp_store/store.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/conformance/store_suite.hpp"
#include "tests/support/catch.hpp"
#include "tools/command/command.hpp"
#include "tools/store/command.hpp"

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Catch::Matchers::Contains;

TEST_CASE("store refuses an address that is none, and shows one in its help") {
  for (const char* bad : {"", "host", ":1", "host:", "host:99999", "host:1x"}) {
    INFO(bad);
    CLI::App app{"meshstage", "meshstage"};
    std::ostringstream out, err;
    tools::add_store_command(app, out);
    CHECK(tools::run_command(app, {"store", "--listen", bad}, out, err) == 2);
    CHECK_THAT(err.str(), Contains("HOST:PORT"));
  }
  CLI::App app{"meshstage", "meshstage"};
  std::ostringstream out, err;
  tools::add_store_command(app, out);
  CHECK(tools::run_command(app, {"store", "--help"}, out, err) == 0);
  CHECK_THAT(out.str(), Contains("MESHSTAGE_STORE=tcp://"));
}

TEST_CASE("a port that is taken is named") {
  const StoreServer taken({});
  const std::string address = taken.address().substr(6);
  CLI::App app{"meshstage", "meshstage"};
  std::ostringstream out, err;
  tools::add_store_command(app, out);
  CHECK(tools::run_command(app, {"store", "--listen", address}, out, err) == 1);
  CHECK_THAT(err.str(), Contains(address));
}

TEST_CASE("the program serves a store in which ranks form, until it is told to end") {
  std::string address;
  {
    const StoreServer reserved({});
    address = reserved.address();
  }
  WorkerProcess program(MESHSTAGE_COMMAND, {"store", "--listen", address.substr(6)});
  ranks_form_over([&] { return open_store(address); });
  program.signal(SIGTERM);
  CHECK(program.finish() == 0);
}
