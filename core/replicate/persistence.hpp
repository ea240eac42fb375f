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

/// The images on disk of one rank: its own, and those it holds for its wards. A persisted image is
/// a safetensors file, byte for byte what lay in the slot.
/// Threads: any, one at a time for one directory and rank.
class MESHSTAGE_API Persistence {
 public:
  /// `fs` must outlive it. Nothing is made before the first publish().
  Persistence(FileSystem& fs, std::filesystem::path directory, std::string job, int rank);

  /// Writes one sealed image under the name of its identity; atomically, synced. An image that is
  /// there already is left alone. Throws IoError and its kin; the file is whole or not there.
  void publish(const ImageInfo& info, std::span<const std::byte> image) const;

  /// What verify() found.
  struct Found {
    std::vector<protocol::Claim> claims;
    std::vector<std::filesystem::path> paths;  ///< Of each claim.
    ImageId newest_named;  ///< The newest id in any file's name of this job, read or not.
  };
  /// Verifies every image newer than `newer_than` that is this rank's own or was written by it.
  /// One that cannot be read or is wrong is told to `complain` and not claimed.
  [[nodiscard]] Found verify(ImageId newer_than,
                             const std::function<void(const std::string&)>& complain) const;

  /// The highest generation in any file's name of this job, whoever wrote it; 0 without files.
  [[nodiscard]] std::uint64_t highest_generation() const;

  /// Removes this rank's images older than that but those of the `keep` newest steps among them.
  /// Returns how many.
  std::size_t prune_older(ImageId than, std::size_t keep) const;

  [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }

 private:
  FileSystem* fs_;
  std::filesystem::path directory_;
  std::string job_;
  int rank_;
};

}  // namespace meshstage
