#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/replicate/reads.hpp>
#include <meshstage/core/reshard/assembly.hpp>
#include <meshstage/core/reshard/step_parts.hpp>

namespace meshstage::detail {

/// A step of another number of ranks, which is gone on from.
struct OldWorldStep {
  ImageId id;
  int world_size = 0;
};

/// Where this rank's files lie, what is said about them, and how the ranks reach each other's.
struct OldFiles {
  FileSystem& fs;
  const std::filesystem::path& directory;
  const std::string& job;
  const ReshardOptions& options;
  std::function<void(const std::string&)> warn;
  replicate::Reads& reads;  ///< Where a rank shows what it reads.
  /// Connects to these ranks, which do the same. Called at most once.
  std::function<Pairs(const std::vector<int>& peers)> connect;
  std::function<void()> throw_if_lost;  ///< Throws RejoinNeeded once the generation is over.
};

/// Which ranks have a file of each old rank's image, and what they send to those that have none.
/// Every rank makes the same one out of what all said. Throws PeerLost, which ends the generation,
/// where that makes no sense: it was changed on its way.
class PartPlan {
 public:
  /// `said`: by rank, one byte for each old rank: whether it has a file. Throws NotFound if no rank
  /// has one of some old rank.
  PartPlan(std::span<const std::vector<std::byte>> said, const OldWorldStep& step);

  /// True if every rank has every file.
  [[nodiscard]] bool all_have_all() const noexcept { return all_have_all_; }
  /// The rank that sends the image of an old rank.
  [[nodiscard]] int server(int old_rank) const {
    return servers_.at(static_cast<std::size_t>(old_rank));
  }
  /// What `rank` tells the others first: the ends of the images that it serves.
  [[nodiscard]] std::vector<std::byte> ends_of(const StepStates& old, int rank) const;
  /// Adds what the others told to `old`.
  void add_ends(StepStates& old, std::span<const std::vector<std::byte>> told) const;

  /// What each rank needs, by rank, in a form that travels.
  [[nodiscard]] static std::vector<std::byte> encode(std::span<const ImagePart> parts);
  void set_needs(std::span<const std::vector<std::byte>> encoded);
  /// Bytes that come to `rank`.
  [[nodiscard]] std::uint64_t bytes_for(int rank) const;
  /// Sends what others need and receives what this rank needs. The pairs, of which the caller
  /// closes links and group once every rank has returned; nothing if this rank exchanges nothing.
  [[nodiscard]] std::optional<Pairs> exchange(const StepStates& old, int rank,
                                              const OldFiles& files) const;

 private:
  [[nodiscard]] std::vector<ImagePart> pieces(int from, int to) const;

  bool all_have_all_ = true;
  std::vector<int> servers_;                   ///< By old rank.
  std::vector<std::vector<ImagePart>> needs_;  ///< By rank.
};

}  // namespace meshstage::detail
