#pragma once
#include <cstdint>
#include <memory>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

struct MemoryFileSystemOptions {
  std::uint64_t capacity = std::uint64_t{1} << 40U;  ///< Bytes of all files; then ENOSPC.
  /// Bytes of one file, for which each file sets address space aside; then EFBIG.
  std::uint64_t max_file_bytes = std::uint64_t{1} << 30U;
  bool in_memory = true;  ///< FreeSpace::in_memory of free_space().
};

/// Files in this process's memory, for tests and for ranks as threads. Mappings of one file share
/// its memory, like real ones. Record locks belong to processes and are lost at any close, like
/// real ones.
/// "/" exists; other directories must be made, and are durable at once. Threads: any.
class MESHSTAGE_API MemoryFileSystem final : public FileSystem {
 public:
  class Disk;
  explicit MemoryFileSystem(MemoryFileSystemOptions options = {});
  ~MemoryFileSystem() override;

  /// The same disk for another process: locks taken through the two file systems exclude each
  /// other.
  [[nodiscard]] std::unique_ptr<MemoryFileSystem> as_process(std::int64_t pid) const;
  /// Simulates a power loss: contents go back to the last sync(), names to the last
  /// sync_directory(), and locks are gone. Everything written after the last sync() is lost;
  /// mappings and open files keep their bytes.
  void lose_power();
  /// Bytes of all files that have a name or are open.
  [[nodiscard]] std::uint64_t used() const;

  std::unique_ptr<File> open(const Path& path, OpenMode mode) override;
  std::optional<FileStat> stat(const Path& path) override;
  void rename(const Path& from, const Path& to) override;
  void link(const Path& from, const Path& to) override;
  bool unlink(const Path& path) override;
  std::vector<std::string> list(const Path& directory) override;
  void make_directories(const Path& directory) override;
  void sync_directory(const Path& directory) override;
  FreeSpace free_space(const Path& path) override;
  ProcessIdentity process() override;

 private:
  MemoryFileSystem(std::shared_ptr<Disk> disk, ProcessIdentity process);
  std::shared_ptr<Disk> disk_;
  ProcessIdentity process_;
};

}  // namespace meshstage
