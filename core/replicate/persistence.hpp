#pragma once
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/protocol/choose.hpp>

namespace meshstage {

/// The images that one rank has on disk: its own, and its wards' replicas. A persisted image is a
/// safetensors file with the same bytes as its slot. Threads: any, one at a time for one directory
/// and rank.
class MESHSTAGE_API Persistence {
 public:
  /// `fs` must outlive it. Makes no directory before the first publish().
  Persistence(FileSystem& fs, std::filesystem::path directory, std::string job, int rank,
              int world_size);

  /// Writes one sealed image under the name of its identity, atomically and synced; `info` was read
  /// from the slot. Each byte is copied, proven by the image's digests and written from the copy
  /// (read_proven()), so what rots in `image` meanwhile does not reach the disk. A file that is
  /// there already stays if it proves to be this image and nobody else may write it; else it is
  /// replaced. Throws CorruptData, IoError and the other errors of FileSystem: then the file is
  /// whole or not there.
  void publish(const ImageInfo& info, std::span<const std::byte> image) const;

  /// The result of verify().
  struct Found {
    std::vector<protocol::Claim> claims;
    std::vector<std::filesystem::path> paths;  ///< The file of each claim.
    ImageId newest_named;  ///< The newest id in the job's file names, read or not.
  };
  /// Verifies every image newer than `newer_than` that is this rank's own or that this rank wrote.
  /// For an image that cannot be read or is wrong it makes no claim, but calls `complain` with the
  /// reason.
  [[nodiscard]] Found verify(ImageId newer_than,
                             const std::function<void(const std::string&)>& complain) const;

  /// The newest step of which the directory has a sound file of every rank of a job of another
  /// number of ranks. Reads the files of that step; `complain` is told of damaged ones.
  [[nodiscard]] protocol::OldStep newest_old_step(
      const std::function<void(const std::string&)>& complain) const;

  /// The highest generation in any file's name of this job, whoever wrote it; 0 without files.
  [[nodiscard]] std::uint64_t highest_generation() const;

  /// Removes this rank's images older than `than`, except those of the `keep` newest such steps.
  /// Returns how many files were removed.
  std::size_t prune_older(ImageId than, std::size_t keep) const;

  [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }

 private:
  [[nodiscard]] bool holds(const std::filesystem::path& path, const ImageInfo& info) const;

  FileSystem* fs_;
  std::filesystem::path directory_;
  std::string job_;
  int rank_;
  int world_size_;
};

}  // namespace meshstage
