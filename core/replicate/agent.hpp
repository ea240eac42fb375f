#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/replicate/options.hpp>
#include <meshstage/core/replicate/results.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// Runs one rank's protocol over a vault, the links and groups of a generation, and a directory of
/// files: each thing that happens becomes an event for protocol::transition(), and each action that
/// it answers becomes a call of one of the engine's parts (README.md beside this file).
///
/// Threads: the engine's, all end with the agent. Calls: one caller at a time.
class MESHSTAGE_API Agent {
 public:
  /// Attaches the vault. `options` must be complete: no default is found here. Throws what
  /// Vault::attach throws, and InvalidArgument on senseless options.
  Agent(CheckpointerOptions options, std::shared_ptr<Store> store);
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;
  ~Agent();

  /// The ranks this one exchanges images with, ascending: its holders, its wards, the other holders
  /// of its wards (which restore a holder when the owner is gone), its lenders and its
  /// borrowers.
  [[nodiscard]] std::vector<int> data_peers() const;
  /// What must be the same in all ranks' options: "blocks of 4194304 bytes, holders 1f0c...".
  [[nodiscard]] std::string agreement() const;
  /// The highest generation this rank's vault has seen, or that a file of the job on its disk
  /// names: all memory and the Store may be gone, and what is on disk then must be the older.
  [[nodiscard]] std::uint64_t highest_generation() const;

  /// Enters a generation. The recovery starts.
  void begin(const Generation& generation);
  /// Leaves the generation: aborts and closes it, and waits until no task of it is left, so that no
  /// transfer writes any more (rule 8). Stagings that are open end with the loss, or Cancelled.
  /// Idempotent.
  void leave() noexcept;

  /// As Checkpointer::recover, stage, finish.
  Recovered recover(Value& state);
  Staging stage(const Value& state, std::uint64_t step);
  void finish();
  /// As Checkpointer::request_termination and persist_now. Threads: any.
  void wish(bool end, bool persist);
  /// As Checkpointer::ending.
  [[nodiscard]] bool end_agreed() const;
  /// Ends the generation on every rank although nobody died. Every call throws PeerLost with `why`
  /// and without a rank, here when this returns, and on the other ranks even if they hear first
  /// that this rank has left (the Store names the cause). A generation that had ended keeps its own
  /// cause.
  void end_generation(const std::string& why);
  /// As Checkpointer::wards, held.
  [[nodiscard]] const std::vector<int>& wards() const noexcept;
  [[nodiscard]] Replica held(int ward, const NodeRegistry& registry);

  /// Throws the loss of a peer, if one is known; it stays known until begin().
  void throw_if_lost() const;
  [[nodiscard]] Stats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace meshstage
