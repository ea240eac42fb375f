// A rank that hangs under `meshstage run`: the launcher kills it if its process is silent, or if
// that is asked for.
#include <sys/stat.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/drill/command_run.hpp"
#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
using drill_runs::Outcome;
using drill_runs::TemporaryDirectory;

namespace {

std::string content(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Three ranks of the example trainer, whose rank 1 has `fault` in its first life. `result`: the
/// bytes of the state that rank 0 has trained.
Outcome train(const std::vector<std::string>& options, const std::string& fault,
              std::string& result) {
  const TemporaryDirectory folder;
  const auto path = [&](const char* name) { return (folder.path() / name).string(); };
  std::filesystem::create_directory(path("vault"));
  const std::string script =
      "[ $RANK = 0 ] && set -- \"$@\" --save $D/result; "
      "[ -n \"$FAULT\" ] && [ $RANK = 1 ] && mkdir $D/first 2>/dev/null && "
      "set -- \"$@\" --fault $FAULT; exec \"$@\"";
  std::vector<std::string> words{"run", "-n", "3", "--job", "hung"};
  words.insert(words.end(), options.begin(), options.end());
  for (const std::string& word : std::vector<std::string>{
           "--", "sh", "-c", script, "sh", MESHSTAGE_TRAINER, "--dir", path("ckpt"), "--vault",
           path("vault"), "--steps", "60", "--deadline-ms", "2000"}) {
    words.push_back(word);
  }
  Outcome o = drill_runs::run(MESHSTAGE_COMMAND, words, 120s,
                              {"D=" + folder.path().string(), "FAULT=" + fault});
  result = content(path("result"));
  return o;
}

/// The trainer of tests/checkpoint, whose rank 1 hangs though its process lives.
Outcome hang_alive(const std::vector<std::string>& options) {
  const TemporaryDirectory folder;
  const auto path = [&](const char* name) { return (folder.path() / name).string(); };
  std::filesystem::create_directory(path("vault"));
  REQUIRE(::mkfifo(path("wake").c_str(), 0600) == 0);
  std::vector<std::string> words{"run", "-n", "3", "--job", "hung"};
  words.insert(words.end(), options.begin(), options.end());
  words.insert(words.end(), {"--", MESHSTAGE_HANGING_TRAINER, folder.path().string(), "wait", "4"});
  return drill_runs::run(MESHSTAGE_COMMAND, words, 120s);
}

}  // namespace

TEST_CASE("a rank whose process was stopped is killed and started anew, alone") {
  static const std::string undisturbed = [] {
    std::string result;
    CHECK(train({}, "", result).code == 0);
    return result;
  }();
  REQUIRE_FALSE(undisturbed.empty());
  // In a step, while it stages, and in its recovery.
  const std::string fault = GENERATE("stop@30", "stop@30:own-sealed", "stop@0:restoring");
  INFO(fault);
  std::string result;
  const Outcome o = train({"--hung-after", "5"}, fault, result);
  INFO(o.out << o.err);
  CHECK_FALSE(o.timed_out);
  CHECK(o.code == 0);
  CHECK(result == undisturbed);
  CHECK_THAT(o.err, contains_text("meshstage run: rank 1: no sign of life for ") &&
                        contains_text(" waited for it, so it was killed; it is started anew "
                                      "(restart 1)\n"));
  CHECK_THAT(o.err, !contains_text("restart 2"));
}

TEST_CASE("a rank that hangs is one restart, where none is allowed the end of the job") {
  std::string result;
  const Outcome o = train({"--hung-after", "5", "--max-restarts", "0"}, "stop@30", result);
  INFO(o.err);
  CHECK_FALSE(o.timed_out);
  CHECK(o.code == 128 + SIGKILL);
  CHECK_THAT(o.err, contains_text("so it was killed, and no restart is allowed"));
}

TEST_CASE("a rank whose process lives is not killed, however long its trainer is away") {
  const Outcome o = hang_alive({"--hung-after", "5"});
  INFO(o.out << o.err);
  CHECK_FALSE(o.timed_out);
  CHECK(o.code == 0);
  CHECK_THAT(o.out, contains_text("[1] woke up") && contains_text("[1] sum 48"));
  CHECK_THAT(o.err, !contains_text("meshstage run: rank 1"));
}

TEST_CASE("a rank whose trainer is away for too long is killed, if that is asked for") {
  const Outcome o = hang_alive({"--away-after", "5"});
  INFO(o.out << o.err);
  CHECK_FALSE(o.timed_out);
  CHECK(o.code == 0);
  CHECK_THAT(o.out, !contains_text("woke up") && contains_text("[1] sum 48"));
  CHECK_THAT(o.err, contains_text("rank 1: its process lives, but its trainer was away for ") &&
                        contains_text("so it was killed; it is started anew (restart 1)"));
}
