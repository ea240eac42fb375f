#pragma once
#include <exception>
#include <optional>
#include <string>
#include <utility>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/own_step.hpp>
#include <meshstage/core/replicate/persister.hpp>
#include <meshstage/core/replicate/slots.hpp>
#include <meshstage/core/replicate/store_worker.hpp>

namespace meshstage::replicate {

/// Why a generation ends: takes the signs of a death, finds its cause in the Store, and gives the
/// loss to the parts that wait.
/// Threads: the loop's.
class Losses {
 public:
  Losses(Engine& engine, StoreWorker& store, Slots& slots, OwnStep& own, Persister& persister);

  /// A generation begins: it has no loss.
  void enter();
  /// Called when every rank has finished: from now on the end of a link is no loss.
  void close() { closing_ = true; }

  /// Engine::lose.
  void lose(int peer, ErrorKind kind, std::string why);
  /// Engine::lose_in_transfer.
  void lose_in_transfer(int peer, ErrorKind kind, std::string why);
  /// Engine::lose_store and lose_vault: this rank itself ends the generation. Its calls throw an
  /// IoError or Fenced.
  void lose_store(std::string why) { lose_itself(ErrorKind::kIo, std::move(why)); }
  void lose_vault(std::string why) { lose_itself(ErrorKind::kFenced, std::move(why)); }
  /// ControlHandlers::on_lost.
  void lost_link(int peer, LostReason reason, const std::string& detail);

  void note(const protocol::NoteDeath& action);
  void report(const protocol::ReportLost& action);
  /// The generation broke: aborts its groups and bridges, and no part waits for a slot any more.
  void abort_transfers();
  /// Gets an exception that no part expects, perhaps from the middle of a transition. Ends the
  /// generation for this rank and all others; the next generation reads everything anew.
  void failed(const std::exception_ptr& failure) noexcept;

 private:
  void lose_itself(ErrorKind kind, std::string why);
  /// The error of this rank's calls after this rank itself ended the generation.
  struct OwnEnd {
    ErrorKind kind;
    std::string why;
  };
  Engine& engine_;
  StoreWorker& store_;
  Slots& slots_;
  OwnStep& own_;
  Persister& persister_;
  bool losing_ = false;            ///< The Store was asked for the cause of a death.
  std::optional<OwnEnd> own_end_;  ///< Of lose_itself().
  bool closing_ = false;
};

}  // namespace meshstage::replicate
