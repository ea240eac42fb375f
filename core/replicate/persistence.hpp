#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/presence.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/replicate/reads.hpp>

namespace meshstage {

/// The images that one rank has on disk: its own, its wards' replicas, and images of ranks that
/// used this directory before and use another one now. A persisted image is a safetensors file with
/// the same bytes as its slot. Threads: any, one at a time for one directory and rank.
///
/// All ranks may share one directory, or each host may have its own, and a job may come back with
/// its ranks on other hosts. So in each generation the ranks that share a directory find one
/// another. One of them reads, and later removes, the images of ranks that do not share it any
/// more.
class MESHSTAGE_API Persistence {
 public:
  /// `fs` must outlive it. Makes no directory before the first publish(). The calls for a recovery
  /// (all but publish() and prune_older()) report to `reads` how far they have read; null: nobody
  /// watches.
  Persistence(FileSystem& fs, std::filesystem::path directory, std::string job, int rank,
              int world_size, replicate::Reads* reads = nullptr);

  /// Writes one sealed image under the name of its identity, atomically and synced; `info` was read
  /// from the slot. Each byte is copied, proven by the image's digests and written from the copy
  /// (read_proven()), so bytes that change in `image` meanwhile do not reach the disk. A file that
  /// is there already stays if it proves to be this image and nobody else may write it; else it is
  /// replaced. Throws CorruptData, IoError and the other errors of FileSystem: then the file is
  /// whole or not there. `writer`: the rank that the file's name gives as its writer; empty: this
  /// rank.
  void publish(const ImageInfo& info, std::span<const std::byte> image,
               std::optional<int> writer = {}) const {
    publish(info, image, writer, nullptr);
  }
  /// publish() for a recovery: reports to `reads` how far it has read and written. This rank
  /// removes the file in prune_older(), whoever its name says has written it.
  void publish_in_recovery(const ImageInfo& info, std::span<const std::byte> image,
                           int writer) const;
  /// A sound file of that image, whoever wrote it; null if there is none.
  [[nodiscard]] std::shared_ptr<const MappedFile> sound_file(ImageId id, int owner,
                                                             int world_size) const;
  /// Whether there is a file of that image, sound or not, whoever wrote it.
  [[nodiscard]] bool has_file(const ImageIdentity& image) const;
  /// The bytes for which the directory's disk has room.
  [[nodiscard]] std::uint64_t room() const;
  /// True if the last verify() saw that all ranks of the job use this directory. False also where
  /// that could not be told, because the directory had no image of the job.
  [[nodiscard]] bool is_shared_by_all() const;

  /// If the directory has an image of the job, leaves a sign there that this rank shares the
  /// directory. verify() of the other ranks sees the sign if all ranks have called enter() before,
  /// in this generation. Throws SystemError.
  void enter(std::uint64_t generation);
  /// Ends what enter() began. verify() is not called any more in this generation.
  void leave();

  /// The result of verify().
  struct Found {
    std::vector<protocol::Claim> claims;
    std::vector<std::filesystem::path> paths;  ///< The file of each claim.
    /// Of each claim to an image of another number of ranks, its file, proven whole; else null.
    std::vector<std::shared_ptr<const MappedFile>> of_others;
    ImageId newest_named;  ///< The newest id in the job's file names, read or not.
  };
  /// Verifies every image newer than `newer_than` that is this rank's own or that this rank wrote.
  /// The ranks that share the directory divide among them the images whose owner and writer do not
  /// share it any more. If enter() failed at a rank, two ranks may verify the same image. For an
  /// image that cannot be read or is wrong it makes no claim, but calls `complain` with the reason.
  /// `any_world`: the ranks also divide, verify and claim the images of another number of ranks.
  /// `crew`: its threads prove the images.
  [[nodiscard]] Found verify(ImageId newer_than,
                             const std::function<void(const std::string&)>& complain,
                             bool any_world = false, Crew* crew = nullptr);

  /// The steps of which the directory has a file of every rank of a job of another number of ranks,
  /// ascending. Reads names only. Only verify() finds out which files are sound.
  [[nodiscard]] std::vector<protocol::OldStep> old_steps() const;
  /// The newest of old_steps() of which a file of every rank is sound. Reads the files of that
  /// step; calls `complain` for each damaged file.
  [[nodiscard]] protocol::OldStep newest_old_step(
      const std::function<void(const std::string&)>& complain) const;

  /// The highest generation in any file's name of this job, whoever wrote it; 0 without files.
  [[nodiscard]] std::uint64_t highest_generation() const;

  /// Removes images older than `than`, but keeps the `keep` newest of these steps. Removes the
  /// images that this rank wrote, and this rank's part of two kinds: images of ranks that do not
  /// share the directory any more, and images of a larger number of ranks. Returns how many files
  /// were removed.
  std::size_t prune_older(ImageId than, std::size_t keep) const;

  [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }

 private:
  void publish(const ImageInfo& info, std::span<const std::byte> image, std::optional<int> writer,
               replicate::Reads* reads) const;
  [[nodiscard]] bool holds(const std::filesystem::path& path, const ImageInfo& info,
                           replicate::Reads* reads) const;
  /// The files of that image, the owner's before the holders'. Reads names only.
  [[nodiscard]] std::vector<PersistedImage> files_of(ImageId id, int owner, int world_size) const;
  /// The rank that verifies and removes the images that `rank` left in the directory.
  [[nodiscard]] int heir_of(int rank, const std::vector<int>& sharing) const;

  FileSystem* fs_;
  std::filesystem::path directory_;
  std::string job_;
  int rank_;
  int world_size_;
  replicate::Reads* reads_;
  std::uint64_t generation_ = 0;  // entered; 0: nothing was there
  std::unique_ptr<Presence> presence_;
  mutable Mutex mutex_;  // verify() and prune_older() run on different threads
  std::vector<int> sharing_ MESHSTAGE_GUARDED_BY(mutex_);  // at the last verify(), ascending
  mutable std::set<int> written_as_ MESHSTAGE_GUARDED_BY(mutex_);  // by publish_in_recovery()
};

}  // namespace meshstage
