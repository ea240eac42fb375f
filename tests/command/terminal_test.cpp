#include "tools/command/terminal.hpp"

#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"

using namespace meshstage::tools;

namespace {

// What the command prints on a terminal of so many columns, the terminal's \r\n as \n.
std::string on_terminal(unsigned short columns, std::vector<std::string> words, int exit_code = 0) {
  words.insert(words.begin(), MESHSTAGE_COMMAND);
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  winsize size{};
  size.ws_row = 24;
  size.ws_col = columns;
  int terminal = -1;
  const pid_t child = ::forkpty(&terminal, nullptr, nullptr, &size);
  REQUIRE(child >= 0);
  if (child == 0) {
    ::unsetenv("COLUMNS");
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  std::string out;
  char piece[4096];
  // The terminal's other end fails with EIO when the command has ended.
  for (ssize_t n = 0; (n = ::read(terminal, piece, sizeof piece)) > 0;) {
    out.append(piece, static_cast<std::size_t>(n));
  }
  ::close(terminal);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == exit_code);
  out.erase(std::remove(out.begin(), out.end(), '\r'), out.end());
  return out;
}

std::string in_pipe(const std::string& words) {
  std::FILE* pipe = ::popen((std::string(MESHSTAGE_COMMAND) + " " + words).c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string out;
  char piece[4096];
  for (std::size_t n = 0; (n = std::fread(piece, 1, sizeof piece, pipe)) > 0;) out.append(piece, n);
  CHECK(::pclose(pipe) == 0);
  return out;
}

std::size_t widest(const std::string& text) {
  std::size_t most = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    most =
        std::max(most, static_cast<std::size_t>(std::count_if(line.begin(), line.end(), [](char c) {
                   return (static_cast<unsigned char>(c) & 0xC0U) != 0x80;
                 })));
  }
  return most;
}

// Without spaces and line ends: what folding must not change.
std::string letters(std::string text) {
  text.erase(std::remove_if(text.begin(), text.end(), [](char c) { return c == ' ' || c == '\n'; }),
             text.end());
  return text;
}

}  // namespace

TEST_CASE("a line is folded between words, below its last column that begins in the left half") {
  CHECK(folded("one two three", 13) == "one two three");
  CHECK(folded("one two three", 12) == "one two\n  three");
  CHECK(folded("  ok  memory  there is enough of it for all", 30) ==
        "  ok  memory  there is enough\n              of it for all");
  CHECK(folded("name    a    far right column of a table", 20) ==
        "name    a    far\n        right column\n        of a table");
  CHECK(folded("see /a/path/that/is/longer/than/a/line now", 20) ==
        "see\n  /a/path/that/is/longer/than/a/line\n  now");
  CHECK(folded("\u00fc\u00fc\u00fc \u00fc\u00fc\u00fc", 7) ==
        "\u00fc\u00fc\u00fc \u00fc\u00fc\u00fc");
  CHECK(folded("", 5).empty());
  CHECK(folded("          x", 5) == "          x");
}

TEST_CASE("a folding stream leaves JSON, pictures and questions as they are") {
  const auto passed = [](const std::vector<std::string>& pieces) {
    std::ostringstream to;
    FoldingStream out(to, 10);
    for (const auto& piece : pieces) out << piece;
    out.flush();
    return to.str();
  };
  CHECK(passed({"some words ", "in two pieces\n", "and more\n"}) ==
        "some words\n  in two\n  pieces\nand more\n");
  CHECK(passed({"{\"a\": 1, \"b\": 2, \"c\": 3}\n"}) == "{\"a\": 1, \"b\": 2, \"c\": 3}\n");
  CHECK(passed({"<svg width=\"3\" height=\"4\"/>\n"}) == "<svg width=\"3\" height=\"4\"/>\n");
  CHECK(passed({"a question that has no end?"}) == "a question that has no end?");
}

TEST_CASE("nothing is wider than the terminal, and all of it is there") {
  const std::vector<std::vector<std::string>> commands{
      {"mesh", "show", "--mesh", "2,2,2,2", "--names", "replicate,shard,tp,cp", "--rank", "0-3"},
      {"mesh", "partners", "--mesh", "2,4", "--ranks-per-host", "4", "--tensor",
       "w=f32[1024,512]:S(0),R"},
      {"mesh", "survive", "--mesh", "8", "--ranks-per-host", "2"},
      {"mesh", "partners", "--help"},
      {"drill", "--help"},
      {"run", "--help"},
      {"help", "environment"},
      {"--help"}};
  for (const auto& words : commands) {
    std::string line;
    for (const auto& word : words) line += (line.empty() ? "'" : " '") + word + "'";
    INFO(line);
    const std::string wide = in_pipe(line);
    const std::string narrow = on_terminal(60, words);
    INFO(narrow);
    CHECK(widest(wide) > 60);
    CHECK(widest(narrow) <= 60);
    CHECK(letters(narrow) == letters(wide));
  }
}

TEST_CASE("run folds its own messages to the terminal, and no line of a rank") {
  const std::string line = "a rank's line that is wider than the terminal, " + std::string(60, 'x');
  const std::string out = on_terminal(60,
                                      {"run", "-n", "1", "--raw", "--max-restarts", "0", "--", "sh",
                                       "-c", "echo \"" + line + "\"; exit 3"},
                                      3);
  INFO(out);
  CHECK_THAT(out, contains_text("\n" + line + "\n") && contains_text("\n  " + line + "\n"));
  std::istringstream lines(out);
  std::string own;
  for (std::string one; std::getline(lines, one);) {
    if (one.ends_with(line)) continue;
    CHECK(widest(one) <= 60);
    own += one + "\n";
  }
  own = letters(own);
  CHECK_THAT(own,
             contains_text(letters("needs the same --job NAME")) &&
                 contains_text(letters("no restart is allowed (--max-restarts 0); the job ends")));
}

TEST_CASE("a tensor's picture has as many columns as the terminal has room for") {
  const std::vector<std::string> words{"mesh",     "shard", "--mesh",       "8",
                                       "--tensor", "4,800", "--placements", "S(1)"};
  const std::string wide = on_terminal(200, words);
  const std::string narrow = on_terminal(60, words);
  CHECK(widest(wide) > 60);
  CHECK_THAT(narrow, contains_text("more columns"));
  CHECK(!contains_text("more columns").match(wide));
  CHECK(widest(narrow) <= 60);
}
