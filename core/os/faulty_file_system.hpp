#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// The operations that can be made to fail.
enum class FileOperation : std::uint8_t {
  kOpen,
  kReadAt,
  kWriteAt,
  kSync,
  kFileStat,
  kTruncate,
  kReserve,
  kMap,
  kTryLock,
  kLockHolder,
  kStat,
  kRename,
  kLink,
  kUnlink,
  kList,
  kMakeDirectories,
  kSyncDirectory,
  kFreeSpace,
};
inline constexpr int kFileOperationCount = 18;
[[nodiscard]] MESHSTAGE_API std::string_view to_string(FileOperation operation) noexcept;

/// Passes every call on to another file system, except the calls that a test asks it to fail.
/// Threads: any.
class MESHSTAGE_API FaultyFileSystem final : public FileSystem {
 public:
  class State;
  /// `inner` must outlive this and every file opened through it.
  explicit FaultyFileSystem(FileSystem& inner);
  ~FaultyFileSystem() override;

  /// Makes the `nth` call (from 1, counted from now) of `operation` throw SystemError(error_number)
  /// and do nothing else. One fault is pending at a time, and it fires once.
  void fail(FileOperation operation, std::uint64_t nth, int error_number);
  /// Like fail(), but counts calls of every operation: for tests that fail each call in turn.
  void fail_any(std::uint64_t nth, int error_number);
  /// Makes every call from the nth on fail, as if the disk had gone away.
  void fail_from(std::uint64_t nth, int error_number);
  void clear_faults();
  /// Makes the next call of `operation` hang until unblock() or the next block(), as on a disk that
  /// goes away and comes back.
  void block(FileOperation operation);
  /// Waits until a call hangs.
  void wait_until_blocked();
  void unblock();
  /// The operation that the last fault hit; nothing if it has not fired yet.
  [[nodiscard]] std::optional<FileOperation> fired() const;
  /// write_at() writes at most this many bytes at a time (0: no limit).
  void shorten_writes(std::size_t max_bytes);
  [[nodiscard]] std::uint64_t calls(FileOperation operation) const;
  [[nodiscard]] std::uint64_t calls() const;

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
  FileSystem& inner_;
  std::shared_ptr<State> state_;
};

}  // namespace meshstage
