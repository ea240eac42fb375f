#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/replicate/reads.hpp>
#include <meshstage/core/reshard/assembly.hpp>
#include <meshstage/core/reshard/step_parts.hpp>

namespace meshstage::detail {

/// A step of another number of ranks, or of another cut, which is gone on from.
struct OldWorldStep {
  ImageId id;
  int world_size = 0;
  bool from_files = true;  ///< This rank's directory has files of it.
};

/// Where this rank's files lie, and how the ranks reach each other's.
struct OldFiles {
  FileSystem& fs;
  const std::filesystem::path& directory;
  const std::string& job;
  const ReshardOptions& options;
  std::function<void(const std::string&)> warn;
  replicate::Reads& reads;  ///< Where a rank shows what it reads.
  int local_ranks = 1;      ///< Ranks of this host, which all take memory.
  unsigned hands = 1;       ///< Threads that prove, and that write the state.
  /// Files, and images that are kept in memory, of which this rank has proven each byte in this
  /// recovery.
  std::vector<std::shared_ptr<const MappedFile>> proven;
  std::uint64_t piece_bytes;  ///< The longest message; the same at each rank.
  /// Connects to these ranks, which do the same. Called at most once.
  std::function<Pairs(const std::vector<int>& peers)> connect;
  std::function<void()> throw_if_lost;  ///< Throws RejoinNeeded once the generation is over.
  bool keeps_old_in_memory = false;     ///< Then a directory that cannot be read does not matter.
};

/// Which ranks have a file of each old rank's image, and what they send to those that have none.
/// Every rank makes the same plan out of what all said.
class PartPlan {
 public:
  /// `said`: by rank, one byte for each old rank: whether it has a file. Throws PeerLost, which
  /// ends the generation, if no rank has one of some old rank any more.
  PartPlan(std::span<const std::vector<std::byte>> said, const OldWorldStep& step);

  /// What `rank` tells the others first: of each image that some rank lacks, and which `rank`
  /// serves, the ends. Throws PeerLost if it lacks one: what it has was changed on its way.
  [[nodiscard]] std::vector<std::byte> ends_of(const StepStates& old, int rank) const;
  /// Adds what the others told to `old`, as far as it lacks it. Throws PeerLost where that makes no
  /// sense: it was changed on its way.
  void add_ends(StepStates& old, std::span<const std::vector<std::byte>> told) const;

  /// What a rank needs, in a form that travels.
  [[nodiscard]] static std::vector<std::byte> encode(std::span<const ImagePart> parts);
  /// What each rank needs, by rank. Throws PeerLost like add_ends().
  void set_needs(std::span<const std::vector<std::byte>> encoded);
  /// Proves what `rank` will send. False if a file is damaged, and was passed over. Throws PeerLost
  /// like add_ends().
  [[nodiscard]] bool prove_served(StepStates& old, int rank) const;
  /// How many bytes come to `rank`.
  [[nodiscard]] std::uint64_t bytes_for(int rank) const;
  /// Sends what others need and receives what this rank needs. The pairs, of which the caller
  /// closes links and group once every rank has returned; nothing if this rank exchanges nothing.
  /// Throws RejoinNeeded for each Error, because the others wait for this rank.
  [[nodiscard]] std::optional<Pairs> exchange(const StepStates& old, int rank,
                                              const OldFiles& files) const;

 private:
  /// The rank that sends parts of the image of `old_rank` to `to`.
  [[nodiscard]] int server(int old_rank, int to) const;
  [[nodiscard]] std::vector<ImagePart> pieces(int from, int to, std::uint64_t most) const;
  void exchange(const StepStates& old, int rank, const OldFiles& files, Pairs& pairs) const;

  std::vector<std::vector<int>> have_;         ///< By old rank: the ranks that have a file.
  std::vector<std::vector<ImagePart>> needs_;  ///< By rank.
};

}  // namespace meshstage::detail
