#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/persistence.hpp>

namespace meshstage::replicate {

/// Reads and proves images for a recovery: slots, files, what was received in parts (`ms-verify`).
/// Threads: the loop's. `then` and `failed` run there, too, unless the generation is being left.
class Verifier {
 public:
  Verifier(Engine& engine, const Persistence& files);

  using Failed = std::function<void(ErrorKind kind, const std::string& why)>;

  /// Every sealed slot whose digests are right. `evidence`: the Store's note.
  void slots(ImageId evidence, std::function<void(const protocol::SlotsVerified&)> then);
  /// Every file newer than that; and in words what is wrong with others.
  void disk(ImageId newer_than,
            std::function<void(const Persistence::Found&, const std::string& damage)> then);

  /// Copies a file of this disk into `target` (an image, or its replica) and proves it.
  void load(std::filesystem::path file, std::span<std::byte> target, protocol::ImageSizes sizes,
            std::function<void(const ImageInfo&)> then, Failed failed);

  /// What other ranks are to send for a replica that arrived in the memory of a whole image.
  struct Missing {
    int lender = -1;
    exchange::Want want;
    std::vector<ImageRange> ranges;  ///< Where it belongs in the image.
  };
  void missing(std::span<const std::byte> image, protocol::ImageSizes sizes, ImageId id,
               std::function<void(const std::vector<Missing>&)> then, Failed failed);
  /// Proves an image whose borrowed storages have come.
  void prove(int from, std::span<std::byte> image, Digest manifest, ImageIdentity identity,
             std::function<void(const ImageInfo&)> then, Failed failed);

  /// Bytes that stay where they are as long as `keep` lives.
  struct Source {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> keep;
    std::vector<ImageRange> ranges;  ///< lent(): where the storages lie.
  };
  /// The image of a claim: in a slot, or in the file `path`.
  void open(const protocol::Claim& claim, std::filesystem::path path,
            std::function<void(const Source&)> then, Failed failed);
  /// The storages of a Want in the own image in `slot`; `to` is who wants them.
  void lent(exchange::Want want, int slot, int to, std::function<void(const Source&)> then,
            Failed failed);

 private:
  template <class Result>
  void run(std::function<Result()> work, std::function<void(const Result&)> then, Failed failed);
  [[nodiscard]] protocol::SlotsVerified verify_slots(ImageId evidence);

  Engine& engine_;
  const Persistence& files_;
  Worker worker_;
};

[[nodiscard]] inline bool is_file(const protocol::Claim& claim) {
  return claim.place == protocol::Place::kOwnFile || claim.place == protocol::Place::kHeldFile;
}
/// Holders are sent replicas, owners what there is.
[[nodiscard]] inline bool sends_replica(const protocol::Claim& source, int to) {
  return to != source.owner || source.needs_lenders();
}

}  // namespace meshstage::replicate
