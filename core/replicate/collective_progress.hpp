#pragma once
#include <cstdint>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/protocol/messages.hpp>
#include <meshstage/core/replicate/engine.hpp>

namespace meshstage::replicate {

/// Finds out whether bytes of the trainer's collectives move anywhere in the job, for the waits of
/// Engine::collective_waits. A rank that waits in a collective for a third rank sends nothing to
/// its peers meanwhile, so their own links do not show that it lives and has a reason.
///
/// Each rank counts what its training group moves. It sends each neighbour in the control tree the
/// sum of its own count and the newest counts of all other neighbours. So no count comes back to
/// the rank that sent it, and the sums rise only while bytes move. A rank whose trainer waits long
/// asks its neighbours for counts, and they theirs. It goes on to ask for a deadline after its last
/// long wait, so that many long waits make few messages. Counts go only to neighbours that ask:
/// kMost at once, then kMost in each deadline. So the first answers of all ranks arrive at once,
/// and do not look like bytes that move. Without a long wait nothing is sent.
///
/// The ranks between take part by their loops alone, whatever their trainers do. A trainer that
/// hangs outside the collectives moves no bytes, so the waits for it end.
/// Threads: the loop's.
class CollectiveProgress {
 public:
  static constexpr int kMost = 16;

  explicit CollectiveProgress(Engine& engine) : engine_(engine) {}

  /// A generation begins: all counts begin anew.
  void enter();
  /// The generation was left.
  void leave();
  /// Takes a neighbour's message. Throws CorruptData if `from` is no neighbour in the tree.
  void hear(int from, const protocol::Moved& message);

 private:
  struct Neighbour {
    int rank = 0;
    protocol::Moved heard, sent;      ///< The newest ones.
    Deadline paid{Deadline::at({})};  ///< Each count moves it on by a part of kMost.
  };
  /// Counts, and sends what the neighbours have to know. Comes again while a rank asks.
  void look();
  void look_again();
  /// What this rank's training group has moved.
  [[nodiscard]] std::uint64_t count_own() const;

  Engine& engine_;
  std::vector<Neighbour> neighbours_;
  std::uint64_t own_ = 0;
  Deadline asks_until_{Deadline::at({})};  ///< This rank asks for counts until then.
  bool comes_again_ = false;               ///< A timed task will look.
};

}  // namespace meshstage::replicate
