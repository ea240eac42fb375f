#pragma once
#include <cstdint>
#include <memory>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

struct MemoryFileSystemOptions {
  std::uint64_t capacity = std::uint64_t{1}
                           << 40U;  ///< Bytes of all files together; ENOSPC beyond.
  std::uint64_t max_file_bytes = std::uint64_t{1}
                                 << 30U;  ///< Address space set aside for each; EFBIG beyond.
  bool in_memory = true;                  ///< What free_space() says of itself.
};

/// Files in this process's memory, for tests and for ranks as threads. Mappings of one file share
/// its memory, as real ones do; record locks belong to processes and are lost at any close, as real
/// ones are.
/// "/" exists; other directories must be made, and are durable at once. Threads: any.
class MESHSTAGE_API MemoryFileSystem final : public FileSystem {
 public:
  class Disk;
  explicit MemoryFileSystem(MemoryFileSystemOptions options = {});
  ~MemoryFileSystem() override;

  /// The same disk as another process sees it: locks taken through the two exclude each other.
  [[nodiscard]] std::unique_ptr<MemoryFileSystem> as_process(std::int64_t pid) const;
  /// Power loss: contents go back to what sync() saw, names to what sync_directory() saw, locks are
  /// gone. Contents written after the last sync are lost whole; mappings and open files keep their
  /// bytes.
  void lose_power();
  /// Bytes of all files with a name or an opener.
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
