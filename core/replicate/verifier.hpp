#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/job_notes.hpp>
#include <meshstage/core/replicate/persistence.hpp>

namespace meshstage::replicate {

/// Reads and proves images for a recovery: slots, files, and images received in parts. Its thread
/// is `ms-verify`. Where an image lies in memory, a crew that lasts for one task helps: the trainer
/// waits, so it has this rank's whole share of the processors. Threads: the loop's. `then` and
/// `failed` run there, too, unless the generation is being left.
class Verifier {
 public:
  Verifier(Engine& engine, Persistence& files);

  using Failed = std::function<void(ErrorKind kind, const std::string& why)>;

  /// An image of this rank that lies in none of its slots: in a file, or in a stray vault.
  struct Here {
    std::filesystem::path file;
    std::shared_ptr<const StraySlot> stray;  ///< Null: in the file.
  };
  /// Files and images in stray vaults.
  struct Found {
    std::vector<protocol::Claim> claims;
    std::vector<Here> places;  ///< Of each claim.
    ImageId evidence;          ///< The newest id in a file's name, or base in a stray's header.
    std::string damage;        ///< In words what is wrong with others.
    protocol::OldStep old;     ///< Persistence::newest_old_step(), at rank 0 if it is asked for.
    std::uint64_t room = 0;    ///< Persistence::room(), at rank 0 if it is asked for.
  };

  /// Finds every sealed slot whose digests are right. What lies in memory of a generation in which
  /// the job finished, or of an older one, is passed over, here and in disk().
  void slots(const JobNotes& notes, std::function<void(const protocol::SlotsVerified&)> then);
  /// Finds every sound file, and every sound image in the stray vaults that this rank takes.
  void disk(const protocol::VerifyDisk& action, std::function<void(const Found&)> then);
  /// Makes files of an old job's images (old_images.hpp); `found` is what disk() found. `then` gets
  /// in words what failed.
  void publish_old(const protocol::PublishOld& action, const Found& found,
                   std::function<void(const std::string& failed)> then);
  /// Looks again for the newest step of another number of ranks on disk.
  void find_old(std::function<void(const protocol::OldStep&)> then);
  /// The recovery is over, as far as files are concerned.
  void leave_files();
  /// Connects to the other ends of Engine::bridge.
  void connect(const std::vector<int>& peers, std::function<void()> then, Failed failed);
  /// Closes Engine::bridge.
  void disconnect();

  /// Copies what lies here into `target` (an image, or its replica) and proves it; but a replica
  /// that is to become an image, whose borrowed storages are still to come.
  void load(Here from, std::span<std::byte> target, protocol::ImageSizes sizes,
            std::function<void(const ImageInfo&)> then, Failed failed);

  /// The storages that a lender must send to complete a replica in the memory of a whole image.
  struct Missing {
    int lender = -1;
    exchange::Want want;
    std::vector<ImageRange> ranges;  ///< Their places in the image.
  };
  void missing(std::span<const std::byte> image, protocol::ImageSizes sizes, ImageId id,
               std::function<void(const std::vector<Missing>&)> then, Failed failed);
  /// Proves an image whose borrowed storages have arrived.
  void prove(int from, std::span<std::byte> image, Digest manifest, ImageIdentity identity,
             std::function<void(const ImageInfo&)> then, Failed failed);

  /// Bytes that stay valid as long as `keep` lives.
  struct Source {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> keep;
    std::vector<ImageRange> ranges;  ///< For lent(): the places of the storages.
  };
  /// Opens the image of a claim: in a slot, or `here`.
  void open(const protocol::Claim& claim, Here here, std::function<void(const Source&)> then,
            Failed failed);
  /// Finds the storages of a Want in the own image in `slot`; rank `to` wants them.
  void lent(exchange::Want want, int slot, int to, std::function<void(const Source&)> then,
            Failed failed);

 private:
  template <class Result>
  void run(std::function<Result()> work, std::function<void(const Result&)> then, Failed failed);
  [[nodiscard]] protocol::SlotsVerified verify_slots(const JobNotes& notes);
  /// For a task of the worker's thread.
  [[nodiscard]] Crew crew_of_waiting_trainer() const;
  /// The generation ends because this rank cannot `what`.
  [[nodiscard]] Failed lose_generation(const char* what);
  void verify_files(ImageId newer_than, Found& found);
  void verify_strays(ImageId newer_than, Found& found);
  /// Whether the job finished after that image was staged.
  [[nodiscard]] bool is_over(ImageId id) const { return id.generation <= finished_; }
  [[nodiscard]] Source bytes_of(const Here& here) const;
  [[nodiscard]] static std::string name_of(const Here& here);

  Engine& engine_;
  Persistence& files_;
  std::uint64_t finished_ = 0;  ///< JobNotes::finished; of the worker's thread.
  Worker worker_;
};

/// True if `to` gets a replica: a holder always does, an owner if the source needs lenders.
[[nodiscard]] inline bool sends_replica(const protocol::Claim& source, int to) {
  return to != source.owner || source.needs_lenders();
}

}  // namespace meshstage::replicate
