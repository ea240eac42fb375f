// Words that a first user gets wrong: the program itself says in one line what is wrong, where, and
// what would be right, and ends with the code that its manual names.
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"

namespace {

struct Answer {
  int code = -1;
  std::string out;  // with what went to stderr
};

Answer run(const std::string& words) {
  std::FILE* pipe = ::popen((std::string(MESHSTAGE_COMMAND) + " " + words + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  Answer answer;
  char piece[4096];
  for (std::size_t n = 0; (n = std::fread(piece, 1, sizeof piece, pipe)) > 0;) {
    answer.out.append(piece, n);
  }
  const int status = ::pclose(pipe);
  answer.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return answer;
}

struct Wrong {
  std::string words;
  int code;
  std::string part;
};

}  // namespace

TEST_CASE("wrong words are one line that says what is right, with the documented code") {
  const TempDirectory temp;
  const std::string file = (temp.path() / "file").string();
  std::ofstream(file) << "text\n";
  const std::string folder = temp.path().string();
  const std::string mesh = MESHSTAGE_SOURCE_DIR "/tools/mesh/example.toml";
  const Wrong table[] = {
      {"", 2, "see meshstage --help"},
      {"vaults", 2, "there is no command \"vaults\"; there are mesh, "},
      {"vaults --help", 2, "there is no command \"vaults\"; there are mesh, "},
      {"bench vaults --help", 2, "there is no command \"vaults\"; there are stage, "},
      {"info more", 2, "the argument more was not expected"},
      {"run -n 2 --wrong -- true", 2, "the argument --wrong was not expected"},
      {"run -n x -- true", 2, "--ranks"},
      {"run -n 2 --master-port 99999 -- true", 2, "not in range 1 to 65535"},
      {"run -n 2 --job 'a b' -- true", 2, "job id \"a b\": [A-Za-z0-9._-]{1,64} is needed"},
      {"run -n 2 --job j --store somewhere -- true", 2, "\"somewhere\" names no store; supported:"},
      {"run -n 2 --store somewhere -- true", 2, "\"somewhere\" names no store; supported:"},
      {"run --hosts " + folder + " -- true", 2, folder + " is a directory; give a file"},
      {"run --hosts " + file + "s -- true", 2, file + "s cannot be read: No such file"},
      {"run -n 2 -- " + file + "s", 2, file + "s cannot be started: No such file"},
      {"store --listen 192.0.2.1:5", 1, "listen on 192.0.2.1:5: "},
      {"store --listen 192.0.2.1:5", 1, "choose another port (0: any free one), or an address of"},
      {"drill --ranks x", 2, "--ranks x: this is no value of --ranks; for example: "},
      {"drill --trace " + folder, 2, "name a file in a directory that exists"},
      {"drill --trace " + folder + "/none/trace", 2, "name a file in a directory that exists"},
      {"mesh shard " + mesh + " --tensor w", 2, "has no tensor 'w'; it has 'weight', 'bias'"},
      {"bench persist --workload small --dir " + file, 2, "Not a directory; name a directory"},
      {"inspect " + file, 1, file + ": not a sound safetensors file"},
      {"inspect " + file + " --depth -1", 2, "--depth: -1: write a whole number"},
  };
  for (const Wrong& w : table) {
    INFO("meshstage " << w.words);
    const Answer got = run(w.words);
    INFO(got.out);
    CHECK(got.code == w.code);
    CHECK_THAT(got.out, contains_text(w.part));
    const bool draws_job =
        w.words.starts_with("run -n 2 -- ");  // and says so, in a line of its own
    CHECK(std::count(got.out.begin(), got.out.end(), '\n') == (draws_job ? 2 : 1));
  }
}

TEST_CASE("the list of commands has a short line for each; their own help has all of it") {
  const std::string list = run("--help").out;
  CHECK_THAT(list, contains_text("start a rank anew when it dies\n"));
  CHECK_THAT(list, !contains_text("torchrun's variables"));
  CHECK_THAT(run("run --help").out, contains_text("torchrun's variables"));
  CHECK_THAT(run("help man").out, contains_text("torchrun's variables") &&
                                      contains_text("the device that was asked for"));
}
