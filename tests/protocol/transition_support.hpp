// One rank's protocol, told events and asked what it answers.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include <meshstage/core/protocol/transition.hpp>

#include "tests/support/catch.hpp"

namespace meshstage::protocol::test {

template <class A>
const A* first(const std::vector<Action>& actions) {
  for (const Action& action : actions) {
    if (const A* a = std::get_if<A>(&action)) return a;
  }
  return nullptr;
}

inline std::vector<Action> tell(State& state, const Event& event) {
  std::vector<Action> out;
  transition(state, event, out);
  return out;
}

inline std::vector<Action> hear(State& state, int from, Body body, std::uint64_t generation = 1) {
  return tell(state, Received{from, Message{generation, std::move(body)}});
}

template <class M>
const M* sent(const std::vector<Action>& actions, int to) {
  for (const Action& action : actions) {
    const Send* send = std::get_if<Send>(&action);
    if (send == nullptr || send->to != to) continue;
    if (const M* m = std::get_if<M>(&send->message.body)) return m;
  }
  return nullptr;
}

/// A rank that is a child of rank 0 and has no children, recovered to nothing in generation 1.
inline State ready_rank(std::shared_ptr<const Config> config) {
  State state = make_state(std::move(config));
  tell(state, Formed{1});
  tell(state, SlotsVerified{});
  hear(state, 0, AskDisk{});
  tell(state, FilesVerified{});
  hear(state, 0, protocol::Choice{});
  hear(state, 0, Established{});
  REQUIRE(state.mode == Mode::kReady);
  return state;
}

inline Refuse::Reason refused(const std::vector<Action>& actions) {
  const Refuse* refuse = first<Refuse>(actions);
  REQUIRE(refuse != nullptr);
  REQUIRE(actions.size() == 1);
  return refuse->reason;
}

/// The event is refused and changes nothing.
inline void require_refused(State& state, const Event& event, Refuse::Reason reason) {
  const State before = state;
  REQUIRE(refused(tell(state, event)) == reason);
  REQUIRE(state == before);
}

inline Event message(int from, Body body, std::uint64_t generation = 1) {
  return Received{from, Message{generation, std::move(body)}};
}

inline constexpr auto kStale = Refuse::Reason::kStale;
inline constexpr auto kMalformed = Refuse::Reason::kMalformed;

}  // namespace meshstage::protocol::test
