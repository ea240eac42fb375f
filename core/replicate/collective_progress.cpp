#include <meshstage/core/replicate/collective_progress.hpp>

#include <algorithm>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/rank_tree.hpp>

namespace meshstage::replicate {

void CollectiveProgress::enter() {
  neighbours_.clear();
  for (const int rank : tree::neighbours(engine_.rank, engine_.world_size)) {
    neighbours_.emplace_back().rank = rank;
  }
  own_ = 0;
  asks_until_ = Deadline::at({});
  comes_again_ = false;
  engine_.collective_waits->watch(
      [this] { engine_.post_or_fail([this] { return [this] { look(); }; }); });
}

void CollectiveProgress::leave() { engine_.collective_waits->watch({}); }

void CollectiveProgress::hear(int from, const protocol::Moved& message) {
  const auto it = std::find_if(neighbours_.begin(), neighbours_.end(),
                               [from](const Neighbour& n) { return n.rank == from; });
  if (it == neighbours_.end()) {
    throw make_error<CorruptData>("moved from rank " + std::to_string(from) + ", no neighbour",
                                  from);
  }
  it->heard = {std::max(it->heard.count, message.count), message.asks};
  look();
}

void CollectiveProgress::look() {
  const auto deadline = Deadline::length(engine_.options.deadline);
  const auto part = deadline / kMost;
  if (engine_.collective_waits->any()) asks_until_ = Deadline::after(deadline);
  int asking = asks_until_.expired() ? 0 : 1;
  own_ = std::max(own_, count_own());
  std::uint64_t all = own_;
  for (const Neighbour& n : neighbours_) {
    all += n.heard.count;
    asking += n.heard.asks ? 1 : 0;
  }
  engine_.collective_waits->set_moved(all);
  for (Neighbour& n : neighbours_) {
    // What came from this neighbour does not go back to it.
    const protocol::Moved now{all - n.heard.count, asking > (n.heard.asks ? 1 : 0)};
    const bool may = n.paid.time() <= Deadline::after(deadline - part).time();
    const bool answers = n.heard.asks && now.count != n.sent.count && may;
    if (!answers && now.asks == n.sent.asks) continue;
    n.sent = now;
    n.paid = n.paid.expired() ? Deadline::after(part) : n.paid.plus(part);
    engine_.say(n.rank, now);
  }
  if (asking > 0) look_again();
}

void CollectiveProgress::look_again() {
  if (comes_again_) return;
  comes_again_ = true;
  const auto length = Deadline::length(engine_.options.deadline) / kMost * 2;
  engine_.loop.post_at(Deadline::after(length), [this, generation = engine_.present] {
    if (generation != engine_.present) return;
    comes_again_ = false;
    look();
  });
}

std::uint64_t CollectiveProgress::count_own() const {
  std::uint64_t count = engine_.collective_waits->done();
  const auto& group = engine_.generation.training;
  if (!group) return count;
  try {
    for (int peer = 0; peer < engine_.world_size; ++peer) {
      if (group->linked(peer)) count += group->moved(peer);
    }
  } catch (...) {  // NOLINT(bugprone-empty-catch): by what its user aborted it
    // The group has ended, and with it the waits.
  }
  return count;
}

}  // namespace meshstage::replicate
