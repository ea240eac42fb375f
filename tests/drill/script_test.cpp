// The shell scripts that set hosts up: none may hold a drill up.
#include "tools/hosts/script.hpp"

#include <chrono>
#include <string>

#include "tests/drill/command_run.hpp"
#include "tests/support/catch.hpp"

using meshstage::tools::hosts::Script;

TEST_CASE("A script that neither answers nor reads its input is killed, with what it started") {
  const drill_runs::TemporaryDirectory directory;  // a name that no other process has
  const std::string mark = directory.path();
  {
    Script script({"sh", "-c", "echo begun; sh -c 'sleep 1000; : " + mark + "' & wait"});
    CHECK_FALSE(script.is_ready(std::chrono::seconds(5)));
    CHECK(script.said() == "begun no answer within 5000 ms");
  }
  CHECK(drill_runs::processes_that_stay(mark).empty());
}

TEST_CASE("A script that is ready ends with its input, and one that fails says why") {
  Script good({"sh", "-c", "echo ready; read -r end"});
  CHECK(good.is_ready());
  CHECK_FALSE(good.end());  // the end of the input is what `read` fails by
  Script bad({"sh", "-c", "echo no such thing >&2; exit 1"});
  CHECK_FALSE(bad.is_ready());
  CHECK(bad.said() == "no such thing");
}
