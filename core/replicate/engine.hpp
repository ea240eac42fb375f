#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/protocol/state.hpp>
#include <meshstage/core/replicate/gate.hpp>
#include <meshstage/core/replicate/loop.hpp>
#include <meshstage/core/replicate/options.hpp>
#include <meshstage/core/replicate/report.hpp>
#include <meshstage/core/replicate/task_scope.hpp>
#include <meshstage/core/transfer/pieces.hpp>
#include <meshstage/core/vault/vault.hpp>

namespace meshstage::replicate {

/// What the parts of one rank's engine share: who the ranks are, the loop, the gate, the vault, the
/// generation. Each part holds a reference to it and has its own state and thread.
///
/// A part's work on another thread belongs to a generation: it keeps a ticket of `scope`, and so
/// does the task that brings its result back to the loop. Leaving the generation closes the scope.
struct Engine {
  /// Attaches the vault. `on_failure` runs on the loop: something was thrown that no part expects.
  Engine(CheckpointerOptions options, FailureHandler on_failure);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const CheckpointerOptions options;  ///< Complete: no default is left to find.
  const int rank;
  const int world_size;
  FileSystem& fs;
  const std::shared_ptr<const protocol::Config> config;
  const protocol::WireContext wire;
  TrainerGate gate;

  /// Written by the trainer's thread while no task of a generation lives.
  Generation generation;
  TaskScope scope;

  /// The loop's thread only: the number of `generation`, 0 outside one. What belongs to no scope
  /// (an answer of the Store, a time) looks at it.
  std::uint64_t present = 0;
  /// The loop's thread only; feed() alone changes it.
  protocol::State state;
  /// The loop's thread only. Takes one event after the other, also where an action brings the next.
  std::function<void(protocol::Event)> feed;
  /// The loop's thread only. The generation cannot go on: `peer` died, or -1.
  std::function<void(int peer, ErrorKind kind, std::string why)> lose;
  /// The loop's thread only. The generation cannot go on without the Store.
  std::function<void(std::string why)> lose_store;
  /// As lose(), seen by a transfer: ignored once this rank has called finish().
  std::function<void(int peer, ErrorKind kind, std::string why)> lose_in_transfer;

  Loop loop;
  Reporter report;
  Vault vault;

  /// Any thread. Runs `task` on the loop, as part of the generation whose ticket this is.
  void to_loop(TaskScope::Ticket ticket, std::function<void()> task);
  /// Any thread. The same for an event, with a ticket of the present generation; dropped if it is
  /// being left.
  void post(protocol::Event event);
  /// For threads of this engine: what their tasks throw ends the generation.
  [[nodiscard]] FailureHandler boundary();

  /// Any thread. Sends a control message of that generation, or of the present one.
  void say(int to, std::uint64_t of_generation, const protocol::Body& body) const;
  void say(int to, const protocol::Body& body) const { say(to, generation.number, body); }
  [[nodiscard]] ImageIdentity identity(int owner, ImageId id, ImageId base) const;
  /// Of a replica, or of a whole image.
  [[nodiscard]] transfer::Shape shape_of(const protocol::ImageSizes& sizes, bool with_manifest,
                                         bool replica) const;
  /// The ranks this one exchanges images with, ascending: its holders, its wards, the other holders
  /// of its wards, its lenders and its borrowers.
  [[nodiscard]] std::vector<int> data_peers() const;
};

}  // namespace meshstage::replicate
