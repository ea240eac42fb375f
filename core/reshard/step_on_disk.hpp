#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// A step for which a directory has a file of every rank of the job that staged it.
struct StepOnDisk {
  ImageId id;
  int world_size = 1;
  /// By rank: the rank's own file first, then the copies that its holders wrote.
  std::vector<std::vector<std::filesystem::path>> files;
};

/// The whole steps of a job in a directory, ascending by id, whatever their world sizes. Reads
/// names only. `complain` gets a text for each file that other users can have written.
[[nodiscard]] MESHSTAGE_API std::vector<StepOnDisk> list_steps_on_disk(
    FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
    const std::function<void(const std::string&)>& complain = {});

/// Called before a file is opened, with 0 bytes, and when `bytes` more of its `of` bytes were read.
using FileRead =
    std::function<void(const std::filesystem::path& file, std::uint64_t bytes, std::uint64_t of)>;

/// The states of all ranks, by rank: read-only views of the files, which they keep mapped. Checks
/// every digest. If a rank's file is damaged, takes the rank's next file and calls `complain`. All
/// nodes become OpaqueNodes. Calls `read` as it goes on. Throws CorruptData naming the rank whose
/// files are all damaged.
[[nodiscard]] MESHSTAGE_API std::vector<Value> read_step(
    FileSystem& fs, const StepOnDisk& step, std::string_view job,
    const std::function<void(const std::string&)>& complain = {}, const FileRead& read = {});

}  // namespace meshstage
