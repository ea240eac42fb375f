#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/os/process_identity.hpp>
#include <meshstage/core/os/system_error.hpp>

namespace meshstage {

/// How open() opens a file. Every file is close-on-exec; a new file has mode 0600. open() refuses,
/// without waiting, what is no regular file: a directory with EISDIR; a pipe, a device or a socket
/// with ENXIO. All modes but kRead refuse a symbolic link in the last part of the path (ELOOP), so
/// that no other user can plant a link in /dev/shm.
enum class OpenMode : std::uint8_t {
  kRead,             ///< Must exist; links are followed.
  kReadUnlinked,     ///< Must exist, and must not be a link.
  kReadWrite,        ///< Must exist.
  kCreateExclusive,  ///< Must not exist (EEXIST): the atomic way to be first.
};

struct FileStat {
  std::uint64_t size = 0;  ///< Bytes.
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t links = 0;
  std::uint32_t uid = 0;
  std::uint32_t mode = 0;  ///< Permission bits only.
  bool is_directory = false;
};

/// Room on the file system that holds a path, for this user.
struct FreeSpace {
  std::uint64_t available = 0;  ///< Bytes.
  std::uint64_t total = 0;      ///< Bytes.
  bool in_memory = false;       ///< True for tmpfs and ramfs, whose pages take memory.
};

enum class MapAccess : std::uint8_t { kRead, kReadWrite };

/// A shared mapping of the first bytes of a file; the destructor unmaps it. The mapping outlives
/// its File and the file's name. Mapping (core/memory) owns it and keeps it out of forks and dumps.
class MESHSTAGE_API MappedRegion {
 public:
  MappedRegion() = default;
  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;
  virtual ~MappedRegion() = default;
  /// Page aligned. Writing to a kRead region is undefined.
  [[nodiscard]] virtual std::span<std::byte> bytes() const noexcept = 0;
  /// Keeps the mapping out of forked children; a child's copy of this object unmaps nothing. Has no
  /// effect where the bytes are ordinary memory of this process. Throws SystemError.
  virtual void exclude_from_forks() = 0;
  /// Keeps the bytes out of core dumps. Has no effect where the bytes are ordinary memory of this
  /// process. Throws SystemError.
  virtual void exclude_from_dumps() = 0;
};

/// An open file; the destructor closes it. Every failing call throws SystemError with path and
/// errno. Threads: any may read and write at offsets, and call reserve_huge(); one at a time may
/// make the other calls.
class MESHSTAGE_API File {
 public:
  File() = default;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  virtual ~File() = default;

  /// Returns the bytes read: fewer than asked for only at the end of the file.
  virtual std::size_t read_at(std::span<std::byte> into, std::uint64_t offset) = 0;
  /// Returns the bytes written, at least one, perhaps fewer than given: use write_fully().
  virtual std::size_t write_at(std::span<const std::byte> bytes, std::uint64_t offset) = 0;
  /// Returns when contents and size are on the disk.
  virtual void sync() = 0;
  virtual FileStat stat() = 0;
  virtual void truncate(std::uint64_t size) = 0;
  /// Gives [0, size) blocks (posix_fallocate), so that neither a store through a mapping (SIGBUS)
  /// nor a write can run out of space. Grows the file to `size` if it was shorter. ENOSPC if there
  /// is no room.
  virtual void reserve(std::uint64_t size) = 0;
  /// For a file in shared memory (tmpfs), before reserve(): gives each whole 2 MiB from byte `from`
  /// to byte `to` that has no pages yet a huge page of zeros. This takes a third of the time that
  /// small pages take. The file's size and its bytes stay as they are; `to` may lie behind the
  /// file's end. truncate() to the file's size gives back what lies behind the end. Never throws:
  /// returns false if some pages are missing (no room, another file system, a kernel before 6.1, a
  /// file that was not opened for writing). Then reserve() makes small pages, or says why not. The
  /// default implementation returns false.
  [[nodiscard]] virtual bool reserve_huge(std::uint64_t from, std::uint64_t to) noexcept;
  /// A shared mapping of the first `length` bytes (> 0, within the file's size). 2 MiB and more are
  /// mapped at a multiple of 2 MiB, where the address space has room, so that the processor can use
  /// the file's huge pages.
  virtual std::unique_ptr<MappedRegion> map(std::uint64_t length, MapAccess access) = 0;

  /// Takes the POSIX record lock (fcntl F_SETLK, exclusive, whole file) for this process; false if
  /// another process has it. Not inherited by fork; the kernel releases it when the process ends.
  /// The lock is also lost when this process closes *any* descriptor of that file: so a process
  /// must open a lock file once.
  virtual bool try_lock() = 0;
  /// The process id of another process that has the lock (0 if it is in another pid namespace);
  /// nothing if no other process has the lock.
  virtual std::optional<std::int64_t> lock_holder() = 0;
};

/// The operating system's files, as far as this library needs them. Every failing call throws
/// SystemError. Threads: any. Implementations: real_file_system(), MemoryFileSystem,
/// FaultyFileSystem.
class MESHSTAGE_API FileSystem {
 public:
  using Path = std::filesystem::path;
  FileSystem() = default;
  FileSystem(const FileSystem&) = delete;
  FileSystem& operator=(const FileSystem&) = delete;
  virtual ~FileSystem() = default;

  virtual std::unique_ptr<File> open(const Path& path, OpenMode mode) = 0;
  /// Nothing if there is no such name. Follows links. Does not open the file.
  virtual std::optional<FileStat> stat(const Path& path) = 0;
  /// Replaces `to` if it exists; every reader sees the old file or the new one.
  virtual void rename(const Path& from, const Path& to) = 0;
  /// Gives the file a second name; EEXIST if `to` exists. This is the atomic way to publish a
  /// finished file once.
  virtual void link(const Path& from, const Path& to) = 0;
  /// False if there was no such name.
  virtual bool unlink(const Path& path) = 0;
  /// The names (not paths) in a directory, sorted, without "." and "..".
  virtual std::vector<std::string> list(const Path& directory) = 0;
  /// Makes the directory and its missing parents, each with mode 0700 whatever the umask. Existing
  /// directories stay as they are.
  virtual void make_directories(const Path& directory) = 0;
  /// Returns when names made, renamed and removed in the directory are on the disk.
  virtual void sync_directory(const Path& directory) = 0;
  virtual FreeSpace free_space(const Path& path) = 0;
  /// The process that this file system acts for; it takes that process's locks.
  virtual ProcessIdentity process() = 0;
};

/// The operating system's file system. It has no state, and the reference stays valid until the
/// program ends.
[[nodiscard]] MESHSTAGE_API FileSystem& real_file_system();

/// Writes all of `bytes`, also if single writes are short.
MESHSTAGE_API void write_fully(File& file, std::span<const std::byte> bytes, std::uint64_t offset);
/// The whole file as text, also where stat() gives size 0 (/proc). Nothing if it does not exist, or
/// if the process or thread that it tells of ends while it is read; SystemError (EFBIG) above
/// `max_bytes`.
[[nodiscard]] MESHSTAGE_API std::optional<std::string> read_text(FileSystem& fs,
                                                                 const std::filesystem::path& path,
                                                                 std::size_t max_bytes = 1U << 20U);

}  // namespace meshstage
