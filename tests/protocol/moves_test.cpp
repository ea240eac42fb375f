// A slot of a stray vault becomes a slot of the rank that sits there now, while newer processes
// take both vaults: the image must lie where one of them looks.
#include <functional>
#include <set>
#include <tuple>

#include "tests/support/catch.hpp"

namespace {

/// The rules of the move; the vault keeps all of them (core/vault/stray.cpp).
struct MoveRules {
  bool links_first = true;     ///< the new name is there before the old one goes
  bool looks_again = true;     ///< between the two the mover looks whether its vault was taken
  bool keeps_old_name = true;  ///< until then the old name stays (else: one rename, undone)
};

/// A process that takes one of the two vaults: raises its epoch, lists its files, opens what it
/// found.
struct Taker {
  int next = 0;
  bool listed = false, found = false;
  auto operator<=>(const Taker&) const = default;
};

struct Move {
  bool old_name = true, new_name = false;  ///< of the image
  bool target_taken = false;               ///< the epoch of the mover's vault was raised
  int mover = 0;
  bool stopped = false;   ///< the mover, for ever
  bool has_slot = false;  ///< the mover counts it among its own
  Taker of_stray, of_target;
  bool replaced = false;  ///< of_target runs, because the mover is stopped or its start is older
  auto operator<=>(const Move&) const = default;
};

constexpr int kEnd = 100;

void step_taker(Taker& taker, bool name_is_there) {
  if (taker.next == 1) taker.listed = name_is_there;
  if (taker.next == 2) taker.found = taker.listed && name_is_there;
  taker.next = taker.next == 2 ? kEnd : taker.next + 1;
}

void step_mover(Move& s, const MoveRules& rules) {
  switch (s.mover) {
    case 0:  // the word of the target slot, by compare-and-swap from the mover's epoch
      s.mover = s.target_taken ? kEnd : 1;
      return;
    case 1:
      if (rules.links_first) s.new_name = true;
      if (!rules.links_first || !rules.keeps_old_name) s.old_name = false;
      s.mover = 2;
      return;
    case 2:
      if (!rules.links_first) s.new_name = true;
      s.mover = rules.looks_again && s.target_taken ? 4 : 3;
      return;
    case 3:
      s.old_name = false;
      s.has_slot = true;
      s.mover = kEnd;
      return;
    default:  // undone
      s.new_name = false;
      s.old_name = true;
      s.mover = kEnd;
  }
}

/// Whether in some order of steps nobody of the next generation finds the image. Counts states.
bool is_lost(const MoveRules& rules, std::size_t* states = nullptr) {
  std::set<Move> seen;
  bool lost = false;
  const std::function<void(const Move&)> visit = [&](const Move& s) {
    if (lost || !seen.insert(s).second) return;
    const auto go = [&](const auto& change) {
      Move next = s;
      change(next);
      visit(next);
    };
    bool ended = true;
    if (s.of_stray.next != kEnd) {
      ended = false;
      go([](Move& n) { step_taker(n.of_stray, n.old_name); });
    }
    if (s.replaced && s.of_target.next != kEnd) {
      ended = false;
      go([](Move& n) {
        if (n.of_target.next == 0) n.target_taken = true;
        step_taker(n.of_target, n.new_name);
      });
    }
    if (s.mover != kEnd && !s.stopped) {
      ended = false;
      go([&](Move& n) { step_mover(n, rules); });
      go([](Move& n) { n.stopped = n.replaced = true; });
    }
    if (!s.replaced) go([](Move& n) { n.replaced = true; });
    if (!ended) return;
    const bool at_target = s.replaced ? s.of_target.found : s.has_slot;
    lost = lost || !(s.of_stray.found || at_target);
  };
  visit({});
  if (states != nullptr) *states = seen.size();
  return lost;
}

}  // namespace

TEST_CASE("a slot that moves to another vault is found by whoever takes the two vaults") {
  std::size_t states = 0;
  CHECK_FALSE(is_lost({}, &states));
  CHECK(states > 100);
}

TEST_CASE("without any rule of the move an image is lost") {
  MoveRules rules;
  SECTION("the old name goes first") { rules.links_first = false; }
  SECTION("the mover does not look again") { rules.looks_again = false; }
  SECTION("the old name is gone while the mover looks") { rules.keeps_old_name = false; }
  CHECK(is_lost(rules));
}
