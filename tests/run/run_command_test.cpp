// `meshstage run` itself, with real processes.
#include <csignal>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <thread>

#include "tests/comm/worker_process.hpp"
#include "tests/drill/command_run.hpp"
#include "tests/run/shell_ranks.hpp"
#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
using drill_runs::Outcome;
using drill_runs::processes_with;
using drill_runs::TemporaryDirectory;
using run_tests::Run;

TEST_CASE("every rank runs once and its lines carry its number") {
  Run r;
  const Outcome o = r.go({"-n", "3", "--job", "j"},
                         "echo \"$MESHSTAGE_RANK of $MESHSTAGE_WORLD_SIZE $RANK $LOCAL_RANK "
                         "$MESHSTAGE_JOB\"; echo wrong >&2");
  CHECK(o.code == 0);
  for (const char* line : {"[0] 0 of 3 0 0 j\n", "[1] 1 of 3 1 1 j\n", "[2] 2 of 3 2 2 j\n"}) {
    CHECK_THAT(o.out, contains_text(line));
  }
  CHECK_THAT(o.err, contains_text("[1] wrong"));
}

TEST_CASE("the dead rank alone is started anew, the others stay") {
  Run r;
  const Outcome o =
      r.go({"-n", "3", "--job", "j"},
           "echo x >>$D/starts.$RANK; while [ ! -e $D/go ]; do sleep 0.05; done & "
           "if [ $RANK = 1 ] && [ ! -e $D/died ]; then touch $D/died; kill -9 $$; fi; "
           "[ $RANK != 1 ] || touch $D/go; wait");
  INFO(o.err);
  CHECK(o.code == 0);
  CHECK(r.lines("starts.0") == 1);
  CHECK(r.lines("starts.1") == 2);
  CHECK(r.lines("starts.2") == 1);
  CHECK_THAT(o.err, contains_text("rank 1: signal 9; it is started anew"));
}

TEST_CASE("the process of each rank is told, after a restart too") {
  Run r;
  const Outcome o =
      r.go({"-n", "2", "--job", "j"},
           "echo $$ >>$D/pids.$RANK; "
           "if [ $RANK = 0 ]; then until [ -e $D/go ]; do sleep 0.02; done; exit; fi; "
           "[ -e $D/died ] || { touch $D/died; kill -9 $$; }; touch $D/go");
  INFO(o.err);
  CHECK(o.code == 0);
  const auto pids = [&](const char* file) {
    std::ifstream in(r.folder.path() / file);
    return std::vector<std::string>{std::istream_iterator<std::string>(in), {}};
  };
  const auto first = pids("pids.0"), second = pids("pids.1");
  REQUIRE(first.size() == 1);
  REQUIRE(second.size() == 2);
  CHECK_THAT(o.err, contains_text("rank 0 is process " + first[0] + ", rank 1 is process " +
                                  second[0] + "\n"));
  CHECK_THAT(o.err, contains_text("rank 1 is process " + second[1] + "\n"));
}

TEST_CASE("75 starts all ranks anew, with another master port") {
  Run r;
  const Outcome o = r.go({"-n", "2", "--job", "j"},
                         "echo $MASTER_PORT >>$D/ports.$RANK; "
                         "if [ -e $D/again ]; then exit 0; fi; "
                         "if [ $RANK = 1 ]; then until [ -s $D/ports.0 ]; do sleep 0.02; done; "
                         "touch $D/again; exit 75; fi; exec sleep 50");
  INFO(o.err);
  CHECK(o.code == 0);
  CHECK(r.lines("ports.0") == 2);
  CHECK(r.lines("ports.1") == 2);
  std::ifstream in(r.folder.path() / "ports.0");
  std::string first, second;
  in >> first >> second;
  CHECK(first != second);
}

TEST_CASE("what cannot start ends the job with its last lines and its exit code") {
  Run r;
  const Outcome o = r.go({"-n", "2", "--job", "j"},
                         "if [ $RANK = 1 ]; then echo no data; exit 4; fi; exec sleep 50");
  CHECK(o.code == 4);
  CHECK_THAT(o.err, contains_text("rank 1: exit code 4, 3 times in a row"));
  CHECK_THAT(o.err, contains_text("the last lines of rank 1:\n  no data"));
}

TEST_CASE("no grace is too long: a rank has until it ends by itself") {
  Run r;
  const Outcome o =
      r.go({"-n", "2", "--job", "j", "--max-restarts", "0", "--grace", "18446744073709551615"},
           "if [ $RANK = 1 ]; then while [ ! -e $D/ready ]; do sleep 0.02; done; exit 3; fi; "
           "trap 'sleep 0.3; echo ended by itself; exit 0' TERM; touch $D/ready; "
           "while :; do sleep 0.02; done");
  INFO(o.err);
  CHECK(o.code == 3);
  CHECK_THAT(o.out, contains_text("[0] ended by itself"));
}

TEST_CASE("what a rank left running ends with it, also what left its group") {
  Run r;
  const std::string mark = "4" + std::to_string(::getpid());  // seconds no other test sleeps for
  const Outcome o = r.go({"-n", "1", "--job", "j"},
                         "sleep " + mark + " & setsid sleep " + mark + " & sleep 0.2; exit 0");
  CHECK(o.code == 0);
  CHECK(processes_with("sleep " + mark).empty());
}

TEST_CASE("ranks do not outlive a launcher that was killed") {
  const TemporaryDirectory folder;
  const std::string mark = "5" + std::to_string(::getpid());
  meshstage::testing::WorkerProcess launcher(
      "/usr/bin/env", {"TMPDIR=" + folder.path().string(),  // for what it cannot remove any more
                       MESHSTAGE_COMMAND, "run", "-n", "2", "--job", "j", "--", "sleep", mark});
  const auto running = [&] {
    std::size_t count = 0;  // the launcher's own command line names it too
    for (const auto& line : processes_with("sleep " + mark)) count += line.starts_with("sleep");
    return count;
  };
  const auto until = [&](std::size_t wanted) {
    for (int i = 0; i < 500 && running() != wanted; ++i) std::this_thread::sleep_for(20ms);
    return running() == wanted;
  };
  CHECK(until(2));
  launcher.kill();
  CHECK(until(0));
}

TEST_CASE("wrong arguments say what is right") {
  const auto refused = [](const std::vector<std::string>& arguments, const std::string& what) {
    const Outcome o = drill_runs::run(MESHSTAGE_COMMAND, arguments, 20s);
    INFO(o.err);
    CHECK(o.code == 2);
    CHECK_THAT(o.err, contains_text(what));
  };
  refused({"run", "-n", "2"}, "program is required");
  refused({"run", "--", "true"}, "-n RANKS or --hosts");
  refused({"run", "-n", "0", "--", "true"}, "-n");
  refused({"run", "-n", "2", "--restrat", "--", "true"}, "--restrat");
  refused({"run", "-n", "2", "--restart", "some", "--", "true"}, "alone");
  refused({"run", "-n", "2", "--job", "j", "--", "/no/such/program"}, "/no/such/program");
  refused({"run", "--hosts", "/no/hosts", "--", "true"}, "/no/hosts");
}

TEST_CASE("launchers of two hosts start one job by the same file, and a dead rank comes back") {
  Run r;
  const auto path = [&](const char* name) { return (r.folder.path() / name).string(); };
  std::ofstream(path("hosts")) << "a 1\nb slots=2\n";
  for (const char* folder : {"vault-a", "vault-b"}) std::filesystem::create_directory(path(folder));
  const auto on = [&](const std::string& host) {
    const std::string script =
        "[ $RANK = 2 ] && [ ! -e $D/killed ] || exec \"$@\"; touch $D/killed; "
        "exec \"$@\" --fault kill@30";
    return drill_runs::run(MESHSTAGE_COMMAND,
                           {"run",
                            "--hosts",
                            path("hosts"),
                            "--this",
                            host,
                            "--store",
                            "file:" + path("store"),
                            "--job",
                            "two-hosts",
                            "--",
                            "sh",
                            "-c",
                            script,
                            "sh",
                            MESHSTAGE_TRAINER,
                            "--dir",
                            path("ckpt"),
                            "--vault",
                            path(("vault-" + host).c_str()),
                            "--steps",
                            "60"},
                           120s, {"D=" + r.folder.path().string(), "MESHSTAGE_HOST=127.0.0.1"});
  };
  Outcome a, b;
  std::thread first([&] { a = on("a"); });
  b = on("b");
  first.join();
  INFO(a.out << a.err << b.out << b.err);
  CHECK(a.code == 0);
  CHECK(b.code == 0);
  CHECK_THAT(a.out, contains_text("[0] step   60/60"));
  CHECK_THAT(b.err, contains_text("rank 2: signal 9; it is started anew"));
  CHECK_THAT(b.err, !contains_text("meshstage run: rank 0"));
}

TEST_CASE("ranks of a real job that die again and again come back and finish") {
  Run r;
  const auto option = [&](const char* name) { return (r.folder.path() / name).string(); };
  std::vector<std::string> arguments{
      "run",   "-n",           "3",       "--job",         "run-test", "--", MESHSTAGE_TRAINER,
      "--dir", option("ckpt"), "--vault", option("vault"), "--steps",  "200"};
  std::filesystem::create_directory(option("vault"));
  const std::string script =  // the ranks 1 and 2 die in their first life
      "[ $RANK != 0 ] && mkdir $D/died.$RANK 2>/dev/null && set -- \"$@\" --fault kill@${RANK}0; "
      "exec \"$@\"";
  arguments.insert(arguments.begin() + 6, {"sh", "-c", script, "sh"});
  const Outcome o =
      drill_runs::run(MESHSTAGE_COMMAND, arguments, 120s, {"D=" + r.folder.path().string()});
  INFO(o.err);
  CHECK(o.code == 0);
  for (const char* rank : {"rank 1", "rank 2"}) {
    CHECK_THAT(o.err, contains_text(std::string(rank) + ": signal 9; it is started anew"));
  }
}
