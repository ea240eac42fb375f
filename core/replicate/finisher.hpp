#pragma once
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/inbox.hpp>
#include <meshstage/core/replicate/losses.hpp>
#include <meshstage/core/replicate/slots.hpp>
#include <meshstage/core/replicate/store_worker.hpp>
#include <meshstage/core/replicate/streams.hpp>

namespace meshstage::replicate {

/// Ends the job at this rank, once every rank has called finish(). Threads: the loop's.
class Finisher {
 public:
  Finisher(Engine& engine, StoreWorker& store, Slots& slots, Streams& streams, Inbox& inbox,
           Losses& losses)
      : engine_(engine),
        store_(store),
        slots_(slots),
        streams_(streams),
        inbox_(inbox),
        losses_(losses) {}

  /// No rank needs images any more that are still on their way, such as a failed step's replica.
  /// Removes the vault when its slots have no users; then rank 0 notes in the Store that the job
  /// has finished. finish() returns after that.
  void remove_vault();

 private:
  /// The vault is removed, perhaps after finish() gave up and the generation was left.
  void removed(std::uint64_t generation);
  void note_finish(std::uint64_t generation);

  Engine& engine_;
  StoreWorker& store_;
  Slots& slots_;
  Streams& streams_;
  Inbox& inbox_;
  Losses& losses_;
};

}  // namespace meshstage::replicate
