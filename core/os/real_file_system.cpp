#include <meshstage/core/os/file_system.hpp>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include <meshstage/core/os/huge_page.hpp>
#include <meshstage/core/os/size_signal.hpp>

#ifndef MADV_COLLAPSE  // headers older than the kernel
#define MADV_COLLAPSE 25
#endif

namespace meshstage {

namespace {

constexpr mode_t kFileMode = 0600;
constexpr mode_t kDirectoryMode = 0700;
/// Linux moves at most this much in one call.
constexpr std::size_t kMaxTransfer = 0x7ffff000;

/// Calls again while a signal interrupts.
template <class F>
auto retry(F&& call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

/// The descriptor, or throws. Closes itself; close is never repeated: after EINTR it is closed on
/// Linux.
class Descriptor {
 public:
  Descriptor(const char* call, const std::filesystem::path& path, int flags, mode_t mode = 0)
      : fd_(retry([&] { return ::open(path.c_str(), flags | O_CLOEXEC, mode); })) {
    if (fd_ < 0) throw SystemError(call, path.native(), errno);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(fd_); }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

constexpr long kSmallPage = 4096;
constexpr long kTmpfs = 0x01021994;

/// mmap() of a file, shared, at a multiple of kHugePageBytes if there is as much as that: the
/// processor uses a huge page only where its address in memory and its place in the file agree.
void* map_shared(int fd, std::uint64_t length, int protection, std::uint64_t offset) noexcept {
  const auto map = [&](void* at, int more) {
    return ::mmap(at, length, protection, MAP_SHARED | more, fd, static_cast<off_t>(offset));
  };
  if (length < kHugePageBytes) return map(nullptr, 0);
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t whole = (length + page - 1) / page * page;
  void* const room = ::mmap(nullptr, whole + kHugePageBytes, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return map(nullptr, 0);
  auto* const begin = static_cast<std::byte*>(room);
  const std::uint64_t past = reinterpret_cast<std::uintptr_t>(begin) % kHugePageBytes;
  const std::uint64_t before = past == 0 ? 0 : kHugePageBytes - past;
  void* const base = map(begin + before, MAP_FIXED);
  if (base == MAP_FAILED) {  // for want of an even larger page, say
    ::munmap(room, whole + kHugePageBytes);
    return map(nullptr, 0);
  }
  if (before != 0) ::munmap(begin, before);
  ::munmap(begin + before + whole, kHugePageBytes - before);
  return base;
}

FileStat to_file_stat(const struct stat& s) {
  FileStat out;
  out.size = static_cast<std::uint64_t>(s.st_size);
  out.device = s.st_dev;
  out.inode = s.st_ino;
  out.links = s.st_nlink;
  out.uid = s.st_uid;
  out.mode = s.st_mode & 07777U;
  out.is_directory = S_ISDIR(s.st_mode);
  return out;
}

class RealRegion final : public MappedRegion {
 public:
  RealRegion(void* base, std::size_t length) : bytes_(static_cast<std::byte*>(base), length) {}
  ~RealRegion() override {
    // In a child that did not get the mapping something else may lie there by now.
    if (mapped_only_in_ == 0 || mapped_only_in_ == ::getpid())
      ::munmap(bytes_.data(), bytes_.size());
  }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept override { return bytes_; }
  void exclude_from_forks() override {
    advise(MADV_DONTFORK, "madvise MADV_DONTFORK");
    mapped_only_in_ = ::getpid();
  }
  void exclude_from_dumps() override { advise(MADV_DONTDUMP, "madvise MADV_DONTDUMP"); }

 private:
  void advise(int advice, const char* call) {
    if (::madvise(bytes_.data(), bytes_.size(), advice) != 0) throw SystemError(call, "", errno);
  }
  std::span<std::byte> bytes_;
  pid_t mapped_only_in_ = 0;  // 0: in forked children too
};

class RealFile final : public File {
 public:
  /// O_NONBLOCK: a pipe without a writer is not waited for; a regular file knows no such thing.
  RealFile(const std::filesystem::path& path, int flags)
      : path_(path), fd_("open", path, flags | O_NONBLOCK | O_NOCTTY, kFileMode) {
    struct stat s{};
    if (::fstat(fd_.get(), &s) != 0) fail("fstat");
    if (S_ISREG(s.st_mode)) return;
    throw SystemError("open (no regular file)", path_.native(),
                      S_ISDIR(s.st_mode) ? EISDIR : ENXIO);
  }

  std::size_t read_at(std::span<std::byte> into, std::uint64_t offset) override {
    std::size_t done = 0;
    while (done < into.size()) {
      const std::size_t want = std::min(into.size() - done, kMaxTransfer);
      const ssize_t n = retry([&] {
        return ::pread(fd_.get(), into.data() + done, want, static_cast<off_t>(offset + done));
      });
      if (n < 0) fail("read");
      if (n == 0) break;
      done += static_cast<std::size_t>(n);
    }
    return done;
  }
  std::size_t write_at(std::span<const std::byte> bytes, std::uint64_t offset) override {
    const std::size_t want = std::min(bytes.size(), kMaxTransfer);
    const detail::SizeSignalBlocked blocked;
    const ssize_t n =
        retry([&] { return ::pwrite(fd_.get(), bytes.data(), want, static_cast<off_t>(offset)); });
    if (n < 0) fail("write");
    if (n == 0 && want != 0) throw SystemError("write", path_.native(), EIO);
    return static_cast<std::size_t>(n);
  }
  void sync() override {
    if (retry([&] { return ::fsync(fd_.get()); }) != 0) fail("fsync");
  }
  FileStat stat() override {
    struct stat s{};
    if (::fstat(fd_.get(), &s) != 0) fail("fstat");
    return to_file_stat(s);
  }
  void truncate(std::uint64_t size) override {
    const detail::SizeSignalBlocked blocked;
    if (retry([&] { return ::ftruncate(fd_.get(), static_cast<off_t>(size)); }) != 0)
      fail("ftruncate");
  }
  void reserve(std::uint64_t size) override {
    if (size == 0) return;
    const detail::SizeSignalBlocked blocked;
    int error = 0;
    do {
      error = ::posix_fallocate(fd_.get(), 0, static_cast<off_t>(size));
    } while (error == EINTR);
    if (error != 0) throw SystemError("posix_fallocate", path_.native(), error);
  }
  bool reserve_huge(std::uint64_t from, std::uint64_t to) noexcept override {
    const std::uint64_t begin = (from + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    const std::uint64_t end = to / kHugePageBytes * kHugePageBytes;
    if (begin >= end) return true;
    if (::sysconf(_SC_PAGESIZE) != kSmallPage) return false;  // their huge pages are larger
    struct statfs kind{};
    if (::fstatfs(fd_.get(), &kind) != 0 || kind.f_type != kTmpfs) return false;
    const detail::SizeSignalBlocked blocked;
    // The kernel collapses no 2 MiB without any page, nor, behind the file's end, pages that are
    // not filled yet. The first call makes one page, and the second fills it.
    for (std::uint64_t at = begin; at < end; at += kHugePageBytes) {
      for (int i = 0; i < 2; ++i) {
        if (retry([&] {
              return ::fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at),
                                 kSmallPage);
            }) != 0) {
          return false;
        }
      }
    }
    void* const window = map_shared(fd_.get(), end - begin, PROT_READ | PROT_WRITE, begin);
    if (window == MAP_FAILED) return false;
    ::madvise(window, end - begin, MADV_DONTFORK);
    const bool done = ::madvise(window, end - begin, MADV_COLLAPSE) == 0;
    ::munmap(window, end - begin);
    return done;
  }
  std::unique_ptr<MappedRegion> map(std::uint64_t length, MapAccess access) override {
    if (length == 0) throw SystemError("mmap", path_.native(), EINVAL);
    const int protection = access == MapAccess::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
    void* const base = map_shared(fd_.get(), length, protection, 0);
    if (base == MAP_FAILED) fail("mmap");
    return std::make_unique<RealRegion>(base, length);
  }
  bool try_lock() override {
    struct flock lock = whole_file();
    if (retry([&] { return ::fcntl(fd_.get(), F_SETLK, &lock); }) == 0) return true;
    if (errno == EACCES || errno == EAGAIN) return false;
    fail("fcntl F_SETLK");
  }
  std::optional<std::int64_t> lock_holder() override {
    struct flock lock = whole_file();
    if (retry([&] { return ::fcntl(fd_.get(), F_GETLK, &lock); }) != 0) fail("fcntl F_GETLK");
    if (lock.l_type == F_UNLCK) return std::nullopt;
    return std::max<std::int64_t>(lock.l_pid, 0);
  }

 private:
  [[noreturn]] void fail(const char* call) const { throw SystemError(call, path_.native(), errno); }
  static struct flock whole_file() {
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    return lock;
  }
  std::filesystem::path path_;
  Descriptor fd_;
};

class RealFileSystem final : public FileSystem {
 public:
  std::unique_ptr<File> open(const Path& path, OpenMode mode) override {
    constexpr int kWriting = O_RDWR | O_NOFOLLOW;
    switch (mode) {
      case OpenMode::kRead:
        return std::make_unique<RealFile>(path, O_RDONLY);
      case OpenMode::kReadUnlinked:
        return std::make_unique<RealFile>(path, O_RDONLY | O_NOFOLLOW);
      case OpenMode::kReadWrite:
        return std::make_unique<RealFile>(path, kWriting);
      case OpenMode::kCreateExclusive:
        break;
    }
    return std::make_unique<RealFile>(path, kWriting | O_CREAT | O_EXCL);
  }
  std::optional<FileStat> stat(const Path& path) override {
    struct stat s{};
    if (::stat(path.c_str(), &s) == 0) return to_file_stat(s);
    if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
    throw SystemError("stat", path.native(), errno);
  }
  void rename(const Path& from, const Path& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) throw SystemError("rename", to.native(), errno);
  }
  void link(const Path& from, const Path& to) override {
    if (::link(from.c_str(), to.c_str()) != 0) throw SystemError("link", to.native(), errno);
  }
  bool unlink(const Path& path) override {
    if (::unlink(path.c_str()) == 0) return true;
    if (errno == ENOENT) return false;
    throw SystemError("unlink", path.native(), errno);
  }
  std::vector<std::string> list(const Path& directory) override {
    const auto close = [](DIR* d) { ::closedir(d); };
    const std::unique_ptr<DIR, decltype(close)> open(::opendir(directory.c_str()), close);
    if (!open) throw SystemError("opendir", directory.native(), errno);
    std::vector<std::string> names;
    while (true) {
      errno = 0;
      const dirent* const entry = ::readdir(open.get());
      if (entry == nullptr) {
        if (errno != 0) throw SystemError("readdir", directory.native(), errno);
        break;
      }
      std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(std::move(name));
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  void make_directories(const Path& directory) override {
    Path made;
    for (const auto& part : directory) {
      made /= part;
      if (::mkdir(made.c_str(), kDirectoryMode) == 0) {
        // The umask may have taken away what the owner needs.
        if (::chmod(made.c_str(), kDirectoryMode) == 0) continue;
        throw SystemError("chmod", made.native(), errno);
      }
      const int error = errno;
      const auto there = stat(made);
      if (there && there->is_directory) continue;
      throw SystemError("mkdir", made.native(), error);
    }
  }
  void sync_directory(const Path& directory) override {
    const Descriptor fd("open", directory, O_RDONLY | O_DIRECTORY);
    // Some file systems cannot sync a directory and say EINVAL: their names are as durable as they
    // get.
    if (retry([&] { return ::fsync(fd.get()); }) != 0 && errno != EINVAL) {
      throw SystemError("fsync", directory.native(), errno);
    }
  }
  FreeSpace free_space(const Path& path) override {
    struct statvfs s{};
    if (retry([&] { return ::statvfs(path.c_str(), &s); }) != 0) {
      throw SystemError("statvfs", path.native(), errno);
    }
    struct statfs kind{};
    if (retry([&] { return ::statfs(path.c_str(), &kind); }) != 0) {
      throw SystemError("statfs", path.native(), errno);
    }
    constexpr long kRamfs = 0x858458f6;
    FreeSpace out;
    out.available = std::uint64_t{s.f_bavail} * s.f_frsize;
    out.total = std::uint64_t{s.f_blocks} * s.f_frsize;
    out.in_memory = kind.f_type == kTmpfs || kind.f_type == kRamfs;
    // ramfs and a tmpfs of size=0 have no limit of their own and say 0.
    if (out.in_memory && out.total == 0) out.available = out.total = ~std::uint64_t{0};
    return out;
  }
  ProcessIdentity process() override { return this_process(); }
};

}  // namespace

FileSystem& real_file_system() {
  static RealFileSystem fs;  // no state: every call goes to the kernel
  return fs;
}

}  // namespace meshstage
