#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/job_notes.hpp>
#include <meshstage/core/replicate/persistence.hpp>
#include <meshstage/core/replicate/proofs.hpp>

namespace meshstage::replicate {

/// Has images read and proven for a recovery, on a thread of its own (`ms-verify`): slots, files,
/// and images received in parts. Its functions return at once, and the thread does the work (see
/// Proofs).
/// Threads: the loop's. `then` and `failed` run there, too, unless the generation is being left.
class Verifier {
 public:
  Verifier(Engine& engine, Persistence& files);

  using Failed = Proofs::Failed;
  using Here = Proofs::Here;
  using Found = Proofs::Found;
  using Missing = Proofs::Missing;
  using Source = Proofs::Source;

  /// Finds every sealed slot whose digests are right. slots() and disk() pass over images in memory
  /// of a generation in which the job finished, and of older generations.
  void slots(const JobNotes& notes, std::function<void(const protocol::SlotsVerified&)> then);
  /// Finds every sound file, and every sound image in the stray vaults that this rank takes.
  void disk(const protocol::VerifyDisk& action, std::function<void(const Found&)> then);
  /// Makes files of an old job's images (old_images.hpp); `found` is what disk() found.
  void publish_old(const protocol::PublishOld& action, const Found& found,
                   std::function<void(const protocol::OldPublished&)> then);
  /// Looks again which steps of another number of ranks are on disk.
  void find_old(const protocol::FindOld& action,
                std::function<void(const protocol::OldFound&)> then);
  /// The recovery is over, as far as files are concerned.
  void leave_files();
  /// Connects to the other ends of Engine::bridge.
  void connect(const std::vector<int>& peers, std::function<void()> then, Failed failed);
  /// Closes Engine::bridge.
  void disconnect();

  /// Copies an image that lies at this rank, or a replica, into `target` and proves it. Does not
  /// prove a replica that is to become an image: its borrowed storages are still to come.
  void load(Here from, std::span<std::byte> target, protocol::ImageSizes sizes,
            std::function<void(const ImageInfo&)> then, Failed failed);

  /// Finds the storages that lenders must send to complete the replica in `image`.
  void missing(std::span<const std::byte> image, protocol::ImageSizes sizes, ImageId id,
               std::function<void(const std::vector<Missing>&)> then, Failed failed);
  /// Proves an image whose borrowed storages have arrived.
  void prove(int from, std::span<std::byte> image, Digest manifest, ImageIdentity identity,
             std::function<void(const ImageInfo&)> then, Failed failed);

  /// Opens the image of a claim: in a slot, or `here`.
  void open(const protocol::Claim& claim, Here here, std::function<void(const Source&)> then,
            Failed failed);
  /// Finds the storages of a Want in the own image in `slot`; rank `to` wants them.
  void lent(exchange::Want want, int slot, int to, std::function<void(const Source&)> then,
            Failed failed);

 private:
  template <class Result>
  void run(std::function<Result()> work, std::function<void(const Result&)> then, Failed failed);
  /// The generation ends because this rank cannot `what`.
  [[nodiscard]] Failed lose_generation(const char* what);

  Engine& engine_;
  Proofs proofs_;  ///< The worker's alone.
  Worker worker_;
};

/// True if `to` gets a replica: a holder always does, an owner if the source needs lenders.
[[nodiscard]] inline bool sends_replica(const protocol::Claim& source, int to) {
  return to != source.owner || source.needs_lenders();
}

}  // namespace meshstage::replicate
