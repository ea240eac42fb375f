#include "tools/drill/fault.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/points/points.hpp>

#include "tools/drill/numbers.hpp"

namespace meshstage::tools::drill {
namespace {

constexpr std::string_view kRanks = "ranks=";

std::vector<std::string_view> point_names() {
  std::vector<std::string_view> names;
  for (const auto point : all_points()) names.push_back(to_string(point));
  return names;
}

[[noreturn]] void refuse(const std::string& what) { throw InvalidArgument(what); }

const char* form_of(How how) {
  switch (how) {
    case How::kStop:
      return "RANK@STEP[:POINT] or "
             "all@STEP[:POINT][:half][:wake][:rotate|:swap][:ranks=N][:twice]";
    case How::kRestart:
      return "all@STEP[:POINT][:rotate|:swap][:ranks=N][:twice]";
    case How::kTwice:
      return "STEP";
    case How::kLose:
      return "RANK@STEP[:POINT], RANK+RANK@STEP[:POINT] or all@STEP[:POINT][:rotate|:swap]";
    default:
      return "RANK@STEP[:POINT], RANK+RANK@STEP[:POINT] or all@STEP[:POINT]";
  }
}

const char* example_of(How how) {
  switch (how) {
    case How::kRestart:
      return "all@87";
    case How::kTwice:
      return "87";
    default:
      return "2@87";
  }
}

/// One fault as it was typed.
class Typed {
 public:
  Typed(How how, std::string_view text, int ranks, std::uint64_t steps)
      : text_(text),
        ranks_(ranks),
        steps_(steps),
        option_(fmt::format("--{} {}", to_string(how), text)),
        form_(form_of(how)) {
    fault_.how = how;
  }

  Fault parse() {
    if (fault_.how == How::kTwice) {
      take_step(text_);
      return fault_;
    }
    const auto at = text_.find('@');
    if (at == std::string_view::npos) {
      refuse(fmt::format("{}: write {}, for example --{} {}", option_, form_, to_string(fault_.how),
                         example_of(fault_.how)));
    }
    std::string_view rest = text_.substr(at + 1);
    const std::string_view step = next(rest);
    take_ranks(text_.substr(0, at));
    while (rest.data() != nullptr) take_word(next(rest));
    take_step(step);
    check();
    return fault_;
  }

 private:
  // Up to the next colon; what is behind it stays in `rest`, which is null at the end.
  static std::string_view next(std::string_view& rest) {
    const auto colon = rest.find(':');
    const std::string_view word = rest.substr(0, colon);
    rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
    return word;
  }

  void take_ranks(std::string_view who) {
    if (who == "all") return;
    if (fault_.how == How::kRestart) {
      refuse(fmt::format("{}: a restart is one of all ranks; write {}", option_, form_));
    }
    for (std::string_view rest = who;;) {
      const auto plus = rest.find('+');
      take_rank(rest.substr(0, plus));
      if (plus == std::string_view::npos) break;
      rest.remove_prefix(plus + 1);
    }
    if (fault_.how == How::kStop && !fault_.with.empty()) {
      refuse(option_ + ": one rank hangs at a time; write " + form_);
    }
  }

  void take_rank(std::string_view one) {
    const auto rank = parse_number(one);
    if (!rank) refuse(fmt::format("{}: '{}' is no rank; write {}", option_, one, form_));
    if (*rank >= static_cast<std::uint64_t>(ranks_)) {
      refuse(fmt::format("{}: there is no rank {}; ranks are 0 to {}", option_, *rank, ranks_ - 1));
    }
    const int number = static_cast<int>(*rank);
    if (fault_.rank == number ||
        std::find(fault_.with.begin(), fault_.with.end(), number) != fault_.with.end()) {
      refuse(fmt::format("{}: rank {} is named twice", option_, number));
    }
    if (!fault_.rank) {
      fault_.rank = number;
    } else {
      fault_.with.push_back(number);
    }
  }

  // What stands behind the step: a point, then how the job comes back.
  void take_word(std::string_view word) {
    const bool of_all = !fault_.rank;
    const bool stops = fault_.how == How::kStop && of_all;
    const bool anew = fault_.how == How::kRestart || stops;
    const bool moves = anew || (fault_.how == How::kLose && of_all);
    const bool seated = fault_.rotate || fault_.swap;
    const bool ended = seated || fault_.ranks > 0 || fault_.twice || fault_.half || fault_.wake;
    if (moves && !seated && word == "rotate") {
      fault_.rotate = true;
    } else if (moves && !seated && word == "swap") {
      fault_.swap = true;
    } else if (anew && !fault_.twice && word == "twice") {
      fault_.twice = true;
    } else if (anew && fault_.ranks == 0 && word.starts_with(kRanks)) {
      const auto number = parse_number(word.substr(kRanks.size()));
      if (!number || *number < 1 || *number > static_cast<std::uint64_t>(kMostRanks)) {
        refuse(fmt::format("{}: write ranks=N, N from 1 to {}", option_, kMostRanks));
      }
      fault_.ranks = static_cast<int>(*number);
    } else if (stops && !fault_.half && word == "half") {
      fault_.half = true;
    } else if (stops && !fault_.wake && word == "wake") {
      fault_.wake = true;
    } else if (ended || !fault_.point.empty()) {
      refuse(fmt::format("{}: '{}' is one word too many; write {}", option_, word, form_));
    } else if (!parse_point(word)) {
      refuse(fmt::format("{}: there is no protocol point '{}'; points are {}", option_, word,
                         fmt::join(point_names(), ", ")));
    } else {
      fault_.point = word;
    }
  }

  void take_step(std::string_view when) {
    const auto step = parse_number(when);
    if (!step) refuse(fmt::format("{}: '{}' is no step; write {}", option_, when, form_));
    // Step 0 is the one that all begin with: it is staged and not trained.
    if ((*step == 0 && fault_.point.empty()) || *step > steps_) {
      refuse(fmt::format("{}: there is no step {}; steps are 1 to {}", option_, *step, steps_));
    }
    fault_.step = *step;
  }

  void check() const {
    // Some may have ended by then; nobody would fence them.
    if (fault_.how == How::kStop && !fault_.rank && fault_.point == "finishing") {
      refuse(option_ + ": ranks that are finishing may end by themselves; write another point");
    }
    // The job must still train while one of the two starts is refused.
    if (fault_.twice && (!fault_.point.empty() || fault_.step + 2 > steps_)) {
      refuse(fmt::format("{}: with :twice write no point, and a step from 1 to {}", option_,
                         steps_ > 2 ? steps_ - 2 : 0));
    }
  }

  Fault fault_;
  std::string_view text_;
  int ranks_;
  std::uint64_t steps_;
  std::string option_;
  std::string form_;
};

}  // namespace

std::string_view to_string(How how) noexcept {
  switch (how) {
    case How::kKill:
      return "kill";
    case How::kStop:
      return "stop";
    case How::kLose:
      return "lose";
    case How::kRestart:
      return "restart";
    case How::kTwice:
      return "twice";
  }
  return "?";
}

std::string Fault::text() const {
  if (how == How::kTwice) return fmt::format("--twice {}", step);
  std::string who = rank ? std::to_string(*rank) : "all";
  for (const int other : with) who += "+" + std::to_string(other);
  std::string line =
      fmt::format("--{} {}@{}{}{}", to_string(how), who, step, point.empty() ? "" : ":", point);
  if (half) line += ":half";
  if (wake) line += ":wake";
  if (rotate) line += ":rotate";
  if (swap) line += ":swap";
  if (ranks > 0) line += fmt::format(":{}{}", kRanks, ranks);
  if (twice) line += ":twice";
  return line;
}

Fault parse_fault(How how, std::string_view text, int ranks, std::uint64_t steps) {
  return Typed(how, text, ranks, steps).parse();
}

}  // namespace meshstage::tools::drill
