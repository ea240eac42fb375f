#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/presence.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/replicate/reads.hpp>

namespace meshstage {

/// The images that one rank has on disk: its own, and its wards' replicas; and those that ranks
/// left there which use other directories now. A persisted image is a safetensors file with the
/// same bytes as its slot. Threads: any, one at a time for one directory and rank.
///
/// All ranks may share one directory, or each host may have its own, and a job may come back with
/// its ranks on other hosts. So in each generation the ranks that share a directory find one
/// another, and one of them reads, and in the end removes, what is left there by ranks that do not.
class MESHSTAGE_API Persistence {
 public:
  /// `fs` must outlive it. Makes no directory before the first publish(). What the calls for a
  /// recovery read (all but publish() and prune_older()) is shown in `reads`, if given.
  Persistence(FileSystem& fs, std::filesystem::path directory, std::string job, int rank,
              int world_size, replicate::Reads* reads = nullptr);

  /// Writes one sealed image under the name of its identity, atomically and synced; `info` was read
  /// from the slot. Each byte is copied, proven by the image's digests and written from the copy
  /// (read_proven()), so what rots in `image` meanwhile does not reach the disk. A file that is
  /// there already stays if it proves to be this image and nobody else may write it; else it is
  /// replaced. Throws CorruptData, IoError and the other errors of FileSystem: then the file is
  /// whole or not there. `writer`: whose name it bears, if that is not this rank.
  void publish(const ImageInfo& info, std::span<const std::byte> image,
               std::optional<int> writer = {}) const {
    publish(info, image, writer, nullptr);
  }
  /// publish() for a recovery, which shows what it reads and writes.
  void publish_in_recovery(const ImageInfo& info, std::span<const std::byte> image,
                           int writer) const {
    publish(info, image, writer, reads_);
  }
  /// A sound file of that image, whoever wrote it; null if there is none.
  [[nodiscard]] std::shared_ptr<const MappedFile> sound_file(ImageId id, int owner,
                                                             int world_size) const;
  /// The bytes for which the directory's disk has room.
  [[nodiscard]] std::uint64_t room() const;

  /// Tells the ranks that share the directory that this rank does, too, if there is an image of the
  /// job. They know it once they verify() in this generation, if all ranks have entered it before.
  /// Throws SystemError.
  void enter(std::uint64_t generation);
  /// Ends what enter() began. verify() is not called any more in this generation.
  void leave();

  /// The result of verify().
  struct Found {
    std::vector<protocol::Claim> claims;
    std::vector<std::filesystem::path> paths;  ///< The file of each claim.
    ImageId newest_named;  ///< The newest id in the job's file names, read or not.
  };
  /// Verifies every image newer than `newer_than` that is this rank's own, or that this rank wrote,
  /// or whose owner and writer share this directory no more. One rank of those that share it
  /// verifies each of the latter; if a rank could not tell that it does, more than one. For an
  /// image that cannot be read or is wrong it makes no claim, but calls `complain` with the reason.
  /// `any_world`: one rank of those that share the directory claims each image of another number of
  /// ranks, too.
  [[nodiscard]] Found verify(ImageId newer_than,
                             const std::function<void(const std::string&)>& complain,
                             bool any_world = false);

  /// The steps of which the directory has a file of every rank of a job of another number of ranks,
  /// ascending. Reads names only: what verify() claims says which files are sound.
  [[nodiscard]] std::vector<protocol::OldStep> old_steps() const;
  /// The newest of old_steps() of which a file of every rank is sound. Reads the files of that
  /// step; `complain` is told of damaged ones.
  [[nodiscard]] protocol::OldStep newest_old_step(
      const std::function<void(const std::string&)>& complain) const;

  /// The highest generation in any file's name of this job, whoever wrote it; 0 without files.
  [[nodiscard]] std::uint64_t highest_generation() const;

  /// Removes images older than `than`, except those of the `keep` newest such steps: those that
  /// this rank wrote, and its part of those that are left by ranks that share the directory no
  /// more, or by a larger number of ranks. Returns how many files were removed.
  std::size_t prune_older(ImageId than, std::size_t keep) const;

  [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }

 private:
  void publish(const ImageInfo& info, std::span<const std::byte> image, std::optional<int> writer,
               replicate::Reads* reads) const;
  [[nodiscard]] bool holds(const std::filesystem::path& path, const ImageInfo& info,
                           replicate::Reads* reads) const;
  /// The rank that cares for what that one left in the directory.
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
};

}  // namespace meshstage
