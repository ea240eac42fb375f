#pragma once
#include <optional>
#include <string>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/own_step.hpp>
#include <meshstage/core/replicate/persister.hpp>
#include <meshstage/core/replicate/store_worker.hpp>

namespace meshstage::replicate {

/// Why a generation ends: takes the signs of a death, finds its cause in the Store, and gives the
/// loss to the parts that wait. Asks the Store, too, whether this generation is still the newest.
/// Threads: the loop's.
class Losses {
 public:
  Losses(Engine& engine, StoreWorker& store, OwnStep& own, Persister& persister);

  /// A generation begins: it has no loss.
  void enter();
  /// Every rank has finished: links that end from now on are in order.
  void close() { closing_ = true; }

  /// Engine::lose.
  void lose(int peer, ErrorKind kind, std::string why);
  /// This rank itself ends the generation, and throws an error of that kind: the Store is lost, or
  /// this process is fenced.
  void lose_itself(ErrorKind kind, std::string why);
  /// ControlHandlers::on_lost.
  void lost_link(int peer, LostReason reason, const std::string& detail);

  void note(const protocol::NoteDeath& action);
  void report(const protocol::ReportLost& action);
  void ask_store(const protocol::AskStore& action);

 private:
  /// What this rank throws where it ended the generation itself.
  struct OwnEnd {
    ErrorKind kind;
    std::string why;
  };
  Engine& engine_;
  StoreWorker& store_;
  OwnStep& own_;
  Persister& persister_;
  bool losing_ = false;            ///< The Store was asked for the cause of a death.
  std::optional<OwnEnd> own_end_;  ///< Of lose_itself().
  bool closing_ = false;
};

}  // namespace meshstage::replicate
