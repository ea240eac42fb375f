#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_set>
#include <vector>

/// Goes through all that can happen in a small model whose states are plain bytes. For models of a
/// few dozen lines; the protocol itself has an explorer of its own (explore.hpp).
namespace meshstage::explorer {

/// One thing that happened: a sentence whose first words are whom it happened to.
struct Step {
  int launch = 0;
  int rank = 0;
  const char* what = "";
  int number = -1;  ///< Behind `what`, unless it is negative.
};

struct Exploration {
  std::size_t states = 0;
  bool complete = true;        ///< False if `most` states were not enough.
  std::string violation;       ///< Empty: every promise is kept.
  std::vector<Step> run;       ///< A shortest run that breaks it.
  std::set<std::string> seen;  ///< What the model says that it reached.
};

/// Every state that can be reached, the nearest first.
///
/// A Model has a State, a struct of bytes without padding, and
///   State start() const;
///   void moves(const State&, Moves<State>&) const;      all that can happen next
///   std::string violation(const State&) const;          empty: none
///   std::string at_rest(const State&) const;            the same where nothing can happen any more
///   const char* milestone(const State&) const;          for `seen`; null: none
template <class State>
struct Moves {
  struct Move {
    Step step;
    State next;
  };
  std::vector<Move> all;
  void add(Step step, const State& next) { all.push_back({step, next}); }
};

template <class Model>
Exploration go_through(const Model& model, std::size_t most = 20'000'000) {
  using State = typename Model::State;
  static_assert(std::has_unique_object_representations_v<State>, "states are compared by bytes");
  struct Reached {
    State state;
    std::uint32_t from;
    Step step;
  };
  const auto bytes_of = [](const State& s) {
    return std::string_view(reinterpret_cast<const char*>(&s), sizeof s);
  };
  std::deque<Reached> reached;  // a deque: the set below points into it
  const auto hash = [&](std::uint32_t i) {
    return std::hash<std::string_view>{}(bytes_of(reached[i].state));
  };
  const auto equal = [&](std::uint32_t a, std::uint32_t b) {
    return bytes_of(reached[a].state) == bytes_of(reached[b].state);
  };
  std::unordered_set<std::uint32_t, decltype(hash), decltype(equal)> known(1U << 16U, hash, equal);

  Exploration result;
  const auto end = [&](std::string violation, std::uint32_t at) {
    result.violation = std::move(violation);
    for (; at != 0; at = reached[at].from) result.run.insert(result.run.begin(), reached[at].step);
    result.states = reached.size();
    return result;
  };
  reached.push_back({model.start(), 0, {}});
  known.insert(0);
  for (std::uint32_t at = 0; at < reached.size(); ++at) {
    if (reached.size() > most) {
      result.complete = false;
      break;
    }
    if (std::string broken = model.violation(reached[at].state); !broken.empty()) {
      return end(std::move(broken), at);
    }
    if (const char* milestone = model.milestone(reached[at].state)) result.seen.insert(milestone);
    Moves<State> moves;
    model.moves(reached[at].state, moves);
    if (moves.all.empty()) {
      if (std::string stuck = model.at_rest(reached[at].state); !stuck.empty()) {
        return end(std::move(stuck), at);
      }
    }
    for (const auto& move : moves.all) {
      reached.push_back({move.next, at, move.step});
      if (!known.insert(static_cast<std::uint32_t>(reached.size() - 1)).second) reached.pop_back();
    }
  }
  result.states = reached.size();
  return result;
}

/// The run as numbered lines; launches are called O, X, Y in the order in which they took the job.
inline std::string tell(const Exploration& result) {
  std::string text;
  int number = 0;
  for (const Step& step : result.run) {
    text += "  " + std::to_string(++number) + ". " + "OXYZ"[step.launch] +
            std::to_string(step.rank) + " " + step.what +
            (step.number < 0 ? "" : " " + std::to_string(step.number)) + "\n";
  }
  return text + "  -> " + result.violation + "\n";
}

}  // namespace meshstage::explorer
