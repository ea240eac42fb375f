#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// Marks a directory as used by a rank of a job, so that the ranks of a generation find out which
/// of them share it: all ranks, or with local disks those of one host. The mark is an empty file
/// that lives as long as this object. After the process's death remove_leftovers() removes the
/// file. Threads: any, one at a time.
class MESHSTAGE_API Presence {
 public:
  /// The directory must exist. `fs` must outlive it. Throws SystemError.
  Presence(FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
           std::uint64_t generation, int rank);
  Presence(const Presence&) = delete;
  Presence& operator=(const Presence&) = delete;
  /// Removes the file, if that is possible.
  ~Presence();

 private:
  FileSystem& fs_;
  std::filesystem::path path_;
  std::unique_ptr<File> file_;
};

/// The ranks that have a Presence in the directory for that job and generation, ascending.
[[nodiscard]] MESHSTAGE_API std::vector<int> ranks_present(FileSystem& fs,
                                                           const std::filesystem::path& directory,
                                                           std::string_view job,
                                                           std::uint64_t generation);

}  // namespace meshstage
