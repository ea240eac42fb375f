// The examples of tools/mesh/README.md are what the commands print.
#include <fstream>
#include <sstream>

#include "tests/command/run_mesh.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"

namespace {

struct Example {
  std::string command;
  std::string output;
};

// A line that begins with "$", and what is indented below it.
std::vector<Example> examples(const std::string& path) {
  std::ifstream in(path);
  REQUIRE(in.good());
  std::vector<Example> out;
  bool within = false;
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("    $ ", 0) == 0) {
      out.push_back({line.substr(6), ""});
      within = true;
    } else if (line.empty() || line.rfind("    ", 0) == 0) {
      if (within) out.back().output += (line.empty() ? line : line.substr(4)) + "\n";
    } else {
      within = false;
    }
  }
  return out;
}

// As a shell splits it: by spaces, but within double quotes.
std::vector<std::string> words_of(const std::string& command) {
  std::vector<std::string> words(1);
  bool quoted = false;
  for (const char c : command) {
    if (c == '"') {
      quoted = !quoted;
    } else if (c == ' ' && !quoted) {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  return words;
}

std::string without_last_lines(std::string text) {
  while (text.size() > 1 && text.ends_with("\n\n")) text.pop_back();
  return text;
}

void replace_all(std::string& text, const std::string& what, const std::string& by) {
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size())) {
    text.replace(at, what.size(), by);
  }
}

}  // namespace

TEST_CASE("the examples of the mesh commands' README are what the commands print") {
  const std::string room = std::string(MESHSTAGE_SOURCE_DIR) + "/tools/mesh/";
  const TempDirectory directory;
  const std::string here = directory.path().string() + "/";
  std::filesystem::copy_file(room + "example.toml", here + "example.toml");
  std::ofstream(here + "bad.toml")
      << "[mesh]\nshape = [2, 4]\nnames = [\"dp\"]\n[partners]\npolicy = \"best\"\n";
  int compared = 0;
  for (const Example& example : examples(room + "README.md")) {
    INFO(example.command);
    auto words = words_of(example.command);
    REQUIRE(words.size() > 2);
    REQUIRE(words[0] == "meshstage");
    REQUIRE(words[1] == "mesh");
    words.erase(words.begin(), words.begin() + 2);
    for (auto& word : words) {
      if (word.ends_with(".toml") || word.ends_with(".svg")) word.insert(0, here);
    }
    const Answer got = run_mesh(words);
    std::string out = got.out + got.err;
    replace_all(out, here, "");
    CHECK(out == without_last_lines(example.output));
    ++compared;
  }
  CHECK(compared == 10);
}
