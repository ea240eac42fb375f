#pragma once
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/protocol/state.hpp>
#include <meshstage/core/replicate/bridge.hpp>
#include <meshstage/core/replicate/collective_waits.hpp>
#include <meshstage/core/replicate/gate.hpp>
#include <meshstage/core/replicate/loop.hpp>
#include <meshstage/core/replicate/options.hpp>
#include <meshstage/core/replicate/pace_of_generation.hpp>
#include <meshstage/core/replicate/reads.hpp>
#include <meshstage/core/replicate/report.hpp>
#include <meshstage/core/replicate/task_scope.hpp>
#include <meshstage/core/transfer/pieces.hpp>
#include <meshstage/core/vault/vault.hpp>

namespace meshstage::replicate {

/// The things that all parts of one rank's engine use: the configuration, the loop, the gate, the
/// vault and the generation. Each part has a reference to the Engine, and its own state and thread.
///
/// A part's work on another thread belongs to a generation. The work keeps a ticket of `scope`, and
/// so does the task that brings the result back to the loop. Leaving the generation closes the
/// scope.
struct Engine {
  /// Attaches the vault. `on_failure` runs on the loop and gets exceptions that no part expects.
  /// `log` writes to options.log; null: one is made.
  Engine(CheckpointerOptions options, std::uint64_t vault_epoch, FailureHandler on_failure,
         TaskObserver on_task, std::shared_ptr<Log> log = {});
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const CheckpointerOptions options;  ///< Complete: all defaults are filled in.
  const int rank;
  const int world_size;
  const bool keeps_old_in_memory;  ///< As agreement.hpp says, when this engine was made.
  FileSystem& fs;
  const std::shared_ptr<const protocol::Config> config;
  const protocol::WireContext wire;
  TrainerGate gate;

  /// The trainer's thread changes it while no task of a generation lives.
  Generation generation;
  TaskScope scope;
  Bridge bridge;
  Reads reads;            ///< This rank's readings for a recovery; the Restorer watches them.
  PaceOfGeneration pace;  ///< Of the copies into the own slot.
  /// The trainer's thread makes a new one for each generation, as it sets `generation`.
  std::shared_ptr<CollectiveWaits> collective_waits = std::make_shared<CollectiveWaits>();

  /// The loop's thread only: the number of `generation`, 0 outside one. Tasks that keep no ticket
  /// (an answer of the Store, a timed task) compare it with the generation in which they began.
  std::uint64_t present = 0;
  /// The loop's thread only; feed() alone changes it.
  protocol::State state;
  /// The loop's thread only. Gives an event to the protocol (`Driver::feed`). Takes one event
  /// after the other, also where an action brings the next one.
  std::function<void(protocol::Event)> feed;
  /// The loop's thread only. Ends the generation because `peer` died; -1 if no peer did.
  std::function<void(int peer, ErrorKind kind, std::string why)> lose;
  /// The loop's thread only. Ends the generation because the Store does not answer.
  std::function<void(std::string why)> lose_store;
  /// The loop's thread only. Another process took this rank's vault: every call throws `why`.
  std::function<void(std::string why)> lose_vault;
  /// lose() for a loss that a transfer saw: ignored once this rank has called finish().
  std::function<void(int peer, ErrorKind kind, std::string why)> lose_in_transfer;

  Loop loop;
  Reporter report;
  Vault vault;

  /// Any thread. Runs `task` on the loop, as part of the ticket's generation.
  void to_loop(TaskScope::Ticket ticket, std::function<void()> task);
  /// Any thread. Feeds `event` on the loop, with a ticket of the present generation; drops the
  /// event if the generation is being left.
  void post(protocol::Event event);
  /// Any thread that may not see an exception, as the links'. Runs the task that `make_task`
  /// returns on the loop, with a ticket of the present generation; drops it if the generation is
  /// being left. Ends the generation if there is no memory for the task.
  template <class MakeTask>
  void post_or_fail(const MakeTask& make_task) noexcept {
    try {
      if (auto ticket = scope.enter()) to_loop(std::move(ticket), make_task());
    } catch (...) {
      loop.fail(std::current_exception());
    }
  }
  /// The handler for threads of this engine: an exception of their tasks ends the generation.
  [[nodiscard]] FailureHandler boundary();

  /// Any thread. Sends a control message of that generation, or of the present one. Dropped if `to`
  /// is neither a peer nor at the other end of a bridge.
  void say(int to, std::uint64_t of_generation, const protocol::Body& body) const;
  void say(int to, const protocol::Body& body) const { say(to, generation.number, body); }
  [[nodiscard]] ImageIdentity identity(int owner, ImageId id, ImageId base) const;
  /// The shape of a replica, or of a whole image.
  [[nodiscard]] transfer::Shape shape_of(const protocol::ImageSizes& sizes, bool with_manifest,
                                         bool replica) const;
  /// Any thread. The group in which images go to and from that rank.
  [[nodiscard]] std::shared_ptr<ProcessGroup> group_to(int peer) const;
  /// Any thread. The link to that rank for the pieces that follow `start`; each piece reaches
  /// `point`. Throws PeerLost if the peer means to use more connections than there are.
  [[nodiscard]] transfer::Link link_to(ProcessGroup& group, int peer,
                                       const protocol::StreamStart& start, Point point);
  /// Any thread. How many connections to that rank a stream uses while the trainer works.
  [[nodiscard]] unsigned connections_beside_trainer(const ProcessGroup& group, int peer) const;
  /// Any thread. lose_in_transfer() on the loop, as part of the ticket's generation. A transfer may
  /// see a death before the links do, and a connection may end without a death: in both cases no
  /// image can travel in this generation any more.
  void lost_in_transfer(const TaskScope::Ticket& ticket, int peer, ErrorKind kind, std::string why);
  /// The same for the error of a transfer with `peer`. The error may name another rank.
  void lost_in_transfer(const TaskScope::Ticket& ticket, int peer, const PeerLost& error);
};

}  // namespace meshstage::replicate
