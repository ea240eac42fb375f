// The signals that `meshstage run` gets, and what its ranks get of them.
#include <csignal>
#include <string>

#include "tests/run/shell_ranks.hpp"
#include "tests/support/catch.hpp"

using drill_runs::Outcome;
using run_tests::Run;

namespace {

/// As `trap` calls it.
std::string name_of(int signal) {
  switch (signal) {
    case SIGINT:
      return "INT";
    case SIGTERM:
      return "TERM";
    case SIGHUP:
      return "HUP";
    case SIGQUIT:
      return "QUIT";
    case SIGUSR1:
      return "USR1";
    default:
      return "USR2";
  }
}

int any_end() { return GENERATE(SIGINT, SIGTERM, SIGHUP, SIGQUIT); }

/// Rank 1 prints "ready" once every rank is here, behind `before`. No rank leaves a core.
std::string ready_behind(const std::string& before) {
  return "ulimit -c 0; " + before +
         "; touch $D/up.$RANK; until [ -e $D/up.0 ] && [ -e $D/up.1 ]; do sleep 0.02; done; "
         "[ $RANK = 0 ] || echo ready; ";
}

constexpr const char* kForEver = "while :; do sleep 0.05; done";

}  // namespace

TEST_CASE("a signal is passed on, and a rank's clean end after it is an end in order") {
  const int signal = any_end();
  INFO(name_of(signal));
  Run r;
  const Outcome o =
      r.go({"-n", "2", "--job", "j"},
           ready_behind("trap 'touch $D/ended.$RANK; exit 0' " + name_of(signal)) + kForEver,
           "[1] ready", signal);
  INFO(o.err);
  CHECK(o.code == 0);
  CHECK(r.has("ended.0"));
  CHECK(r.has("ended.1"));
  CHECK_THAT(o.err, contains_text("signal " + std::to_string(signal) +
                                  " is passed on; waiting for ranks 0, 1"));
}

TEST_CASE("a rank that dies of the signal passed on is not started anew") {
  const int signal = any_end();
  INFO(name_of(signal));
  Run r;
  const Outcome o = r.go({"-n", "2", "--job", "j"},
                         ready_behind("echo x >>$D/starts") + "exec sleep 50", "[1] ready", signal);
  INFO(o.err);
  CHECK(o.code == 128 + signal);
  CHECK(r.lines("starts") == 2);
  CHECK_THAT(o.err, !contains_text("started anew"));
}

TEST_CASE("SIGUSR1 and SIGUSR2 are passed on, and the job goes on") {
  const int signal = GENERATE(SIGUSR1, SIGUSR2);
  INFO(name_of(signal));
  Run r;
  const Outcome o = r.go({"-n", "2", "--job", "j"},
                         ready_behind("trap 'touch $D/came.$RANK' " + name_of(signal)) +
                             "until [ -e $D/came.0 ] && [ -e $D/came.1 ]; do sleep 0.02; done; "
                             "echo trained; exit 0",
                         "[1] ready", signal);
  INFO(o.err);
  CHECK(o.code == 0);
  CHECK_THAT(o.err, !contains_text("passed on"));
  CHECK_THAT(o.out, contains_text("[0] trained") && contains_text("[1] trained"));
}

TEST_CASE("a second signal kills ranks that do not end, whichever the two are") {
  const int first = any_end();
  const int second = GENERATE(SIGINT, SIGTERM, SIGHUP, SIGQUIT);  // every pair
  INFO(name_of(first) << " and " << name_of(second));
  Run r;
  // Rank 1 answers the signal that is passed on by the second one to the launcher.
  const Outcome o =
      r.go({"-n", "2", "--job", "j"},
           ready_behind("[ $RANK = 0 ] && trap '' " + name_of(first) + " || trap 'kill -" +
                        name_of(second) + " $PPID' " + name_of(first)) +
               kForEver,
           "[1] ready", first);
  INFO(o.err);
  CHECK_FALSE(o.timed_out);
  CHECK(o.code == 128 + first);
  CHECK_THAT(o.err,
             contains_text("a second one kills them") && contains_text("killing ranks 0, 1"));
}

TEST_CASE("one signal alone kills no rank that takes its time to end") {
  const int signal = any_end();
  INFO(name_of(signal));
  Run r;
  const Outcome o =
      r.go({"-n", "2", "--job", "j", "--grace", "0"},
           ready_behind("trap 'sleep 0.5; echo saved; exit 0' " + name_of(signal)) + kForEver,
           "[1] ready", signal);
  INFO(o.err);
  CHECK(o.code == 0);
  CHECK_THAT(o.out, contains_text("[0] saved") && contains_text("[1] saved"));
  CHECK_THAT(o.err, !contains_text("killed") && !contains_text("killing"));
}
