#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/inbox.hpp>
#include <meshstage/core/replicate/store_worker.hpp>
#include <meshstage/core/replicate/streams.hpp>
#include <meshstage/core/replicate/verifier.hpp>

namespace meshstage::replicate {

/// A recovery at this rank: verifies its images, serves them to other ranks, and gives commands to
/// its trainer. Images that this rank fetches arrive at the Inbox.
/// Threads: the loop's.
class Restorer {
 public:
  Restorer(Engine& engine, StoreWorker& store, Verifier& verifier, Streams& streams, Inbox& inbox);

  void verify_slots();
  void verify_disk(const protocol::VerifyDisk& action);
  void publish_old(const protocol::PublishOld& action);
  void find_old(const protocol::FindOld& action);
  void fetch(const protocol::Fetch& action);
  void serve(const protocol::Serve& action);
  void check_structure(const protocol::CheckStructure& action);
  void restore(const protocol::RestoreTrainer& action);
  void nothing(const protocol::OldStep& old);
  void reassemble(const protocol::Reassemble& action);
  void left_behind(const protocol::LeftBehind& action);
  void failed(const protocol::RecoverFailed& action);

 private:
  /// The place of the image; nothing for a claim of another rank, and for an image that was not
  /// verified.
  [[nodiscard]] std::optional<Verifier::Here> place_of(const protocol::Claim& claim) const;

  /// The answer to a VerifyDisk that has `up_to`: what was verified in this recovery, once.
  [[nodiscard]] protocol::FilesVerified found_again(const protocol::VerifyDisk& action) const;
  void forget_found();
  /// Keeps of what verify_disk() found only what a recovery to `id` needs: the other images' memory
  /// may be needed.
  void keep_found(ImageId id);

  /// Threads: any. look_at_reads() comes on the loop, after that time.
  void look_after(Reads::Clock::duration length);
  void look_at_reads();

  Engine& engine_;
  StoreWorker& store_;
  Verifier& verifier_;
  Streams& streams_;
  Inbox& inbox_;
  std::vector<protocol::Claim> in_slots_;  ///< The result of verify_slots(), for found_again().
  Verifier::Found found_;  ///< The result of verify_disk(), for fetch() and serve().
  Source own_source_ = Source::kOwnMemory;
  int own_source_rank_ = -1;
};

}  // namespace meshstage::replicate
