#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/os/memory_file_system.hpp>

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace meshstage {

namespace {

using Path = FileSystem::Path;

/// One file's bytes, in address space set aside once, so that mappings stay where they are as it
/// grows.
struct Inode {
  Inode(std::uint64_t number_, std::uint32_t uid_, std::uint64_t room_)
      : number(number_), uid(uid_), room(room_) {
    void* const p = ::mmap(nullptr, room, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw SystemError("mmap", "memory file", errno);
    base = static_cast<std::byte*>(p);
  }
  Inode(const Inode&) = delete;
  Inode& operator=(const Inode&) = delete;
  ~Inode() { ::munmap(base, room); }

  const std::uint64_t number;
  const std::uint32_t uid;
  const std::uint64_t room;
  std::byte* base = nullptr;
  std::uint64_t size = 0;
  std::uint64_t charged = 0;  // bytes counted against the disk's capacity
  std::uint64_t links = 0;
  std::uint64_t openers = 0;
  std::vector<std::byte> synced;
  std::optional<std::pair<std::int64_t, std::uint64_t>> lock_owner;  // pid, instance
};

}  // namespace

class MemoryFileSystem::Disk {
 public:
  explicit Disk(MemoryFileSystemOptions o) : options(o) {}

  const MemoryFileSystemOptions options;
  Mutex mutex;  // guards every Inode, too, but not the file's bytes
  std::map<Path, std::shared_ptr<Inode>> names MESHSTAGE_GUARDED_BY(mutex);
  std::map<Path, std::shared_ptr<Inode>> durable_names MESHSTAGE_GUARDED_BY(mutex);
  std::set<Path> directories MESHSTAGE_GUARDED_BY(mutex){"/"};
  std::uint64_t used MESHSTAGE_GUARDED_BY(mutex) = 0;
  std::uint64_t next_number MESHSTAGE_GUARDED_BY(mutex) = 1;

  static Path clean(const Path& path) {
    Path normal = ("/" / path).lexically_normal();
    if (!normal.has_filename() && normal != "/") normal = normal.parent_path();
    return normal;
  }
  void need_directory(const char* call, const Path& path) MESHSTAGE_REQUIRES(mutex) {
    if (directories.count(path) == 0) {
      throw SystemError(call, path.native(), names.count(path) != 0 ? ENOTDIR : ENOENT);
    }
  }
  /// `size` bytes of the file have blocks from now on.
  void charge(Inode& inode, std::uint64_t size, const char* call, const Path& path)
      MESHSTAGE_REQUIRES(mutex) {
    if (size > inode.room) throw SystemError(call, path.native(), EFBIG);
    if (size <= inode.charged) return;
    if (size - inode.charged > options.capacity - std::min(options.capacity, used)) {
      throw SystemError(call, path.native(), ENOSPC);
    }
    used += size - inode.charged;
    inode.charged = size;
  }
  void uncharge(Inode& inode, std::uint64_t size) MESHSTAGE_REQUIRES(mutex) {
    used -= inode.charged - std::min(inode.charged, size);
    inode.charged = std::min(inode.charged, size);
  }
  void drop_name(const std::map<Path, std::shared_ptr<Inode>>::iterator& at)
      MESHSTAGE_REQUIRES(mutex) {
    const auto inode = at->second;
    names.erase(at);
    if (--inode->links == 0 && inode->openers == 0) uncharge(*inode, 0);
  }
  static FileStat stat_of(const Inode& inode) {
    FileStat s;
    s.size = inode.size;
    s.device = 1;
    s.inode = inode.number;
    s.links = inode.links;
    s.uid = inode.uid;
    s.mode = 0600;
    return s;
  }
};

namespace {

class MemoryRegion final : public MappedRegion {
 public:
  MemoryRegion(std::shared_ptr<Inode> inode, std::uint64_t length)
      : inode_(std::move(inode)), bytes_(inode_->base, length) {}
  [[nodiscard]] std::span<std::byte> bytes() const noexcept override { return bytes_; }
  void exclude_from_forks() override {}
  void exclude_from_dumps() override {}

 private:
  std::shared_ptr<Inode> inode_;
  std::span<std::byte> bytes_;
};

class MemoryFile final : public File {
 public:
  using Disk = MemoryFileSystem::Disk;
  MemoryFile(std::shared_ptr<Disk> disk, std::shared_ptr<Inode> inode, Path path, bool writable,
             std::pair<std::int64_t, std::uint64_t> process)
      : disk_(std::move(disk)),
        inode_(std::move(inode)),
        path_(std::move(path)),
        writable_(writable),
        process_(process) {
    ++inode_->openers;
  }
  ~MemoryFile() override {
    const MutexLock lock(disk_->mutex);
    if (inode_->lock_owner == process_) inode_->lock_owner.reset();  // at any close, as POSIX says
    if (--inode_->openers == 0 && inode_->links == 0) disk_->uncharge(*inode_, 0);
  }

  std::size_t read_at(std::span<std::byte> into, std::uint64_t offset) override {
    const MutexLock lock(disk_->mutex);
    if (offset >= inode_->size) return 0;
    const std::size_t n = std::min<std::uint64_t>(into.size(), inode_->size - offset);
    if (n != 0) std::memcpy(into.data(), inode_->base + offset, n);
    return n;
  }
  std::size_t write_at(std::span<const std::byte> bytes, std::uint64_t offset) override {
    const MutexLock lock(disk_->mutex);
    need_writable("write");
    if (bytes.empty()) return 0;
    if (offset > inode_->room || bytes.size() > inode_->room - offset) {
      throw SystemError("write", path_.native(), EFBIG);
    }
    const std::uint64_t end = offset + bytes.size();
    disk_->charge(*inode_, end, "write", path_);
    std::memcpy(inode_->base + offset, bytes.data(), bytes.size());
    inode_->size = std::max(inode_->size, end);
    return bytes.size();
  }
  void sync() override {
    const MutexLock lock(disk_->mutex);
    inode_->synced.assign(inode_->base, inode_->base + inode_->size);
  }
  FileStat stat() override {
    const MutexLock lock(disk_->mutex);
    return Disk::stat_of(*inode_);
  }
  void truncate(std::uint64_t size) override {
    const MutexLock lock(disk_->mutex);
    need_writable("ftruncate");
    if (size > inode_->room) throw SystemError("ftruncate", path_.native(), EFBIG);
    if (size < inode_->size) {
      std::memset(inode_->base + size, 0, inode_->size - size);
      disk_->uncharge(*inode_, size);
    }
    inode_->size = size;
  }
  void reserve(std::uint64_t size) override {
    const MutexLock lock(disk_->mutex);
    need_writable("posix_fallocate");
    disk_->charge(*inode_, size, "posix_fallocate", path_);
    inode_->size = std::max(inode_->size, size);
  }
  std::unique_ptr<MappedRegion> map(std::uint64_t length, MapAccess access) override {
    const MutexLock lock(disk_->mutex);
    if (access == MapAccess::kReadWrite) need_writable("mmap");
    if (length == 0 || length > inode_->size) throw SystemError("mmap", path_.native(), EINVAL);
    return std::make_unique<MemoryRegion>(inode_, length);
  }
  bool try_lock() override {
    const MutexLock lock(disk_->mutex);
    need_writable("fcntl F_SETLK");
    if (inode_->lock_owner && inode_->lock_owner != process_) return false;
    inode_->lock_owner = process_;
    return true;
  }
  std::optional<std::int64_t> lock_holder() override {
    const MutexLock lock(disk_->mutex);
    if (!inode_->lock_owner || inode_->lock_owner == process_) return std::nullopt;
    return inode_->lock_owner->first;
  }

 private:
  void need_writable(const char* call) const {
    if (!writable_) throw SystemError(call, path_.native(), EBADF);
  }
  std::shared_ptr<Disk> disk_;
  std::shared_ptr<Inode> inode_;
  Path path_;
  bool writable_;
  std::pair<std::int64_t, std::uint64_t> process_;
};

}  // namespace

MemoryFileSystem::MemoryFileSystem(MemoryFileSystemOptions options)
    : MemoryFileSystem(std::make_shared<Disk>(options), this_process()) {}

MemoryFileSystem::MemoryFileSystem(std::shared_ptr<Disk> disk, ProcessIdentity process)
    : disk_(std::move(disk)), process_(std::move(process)) {}

MemoryFileSystem::~MemoryFileSystem() = default;

std::unique_ptr<MemoryFileSystem> MemoryFileSystem::as_process(std::int64_t pid) const {
  ProcessIdentity identity = process_;
  identity.pid = pid;
  identity.instance += static_cast<std::uint64_t>(pid);
  return std::unique_ptr<MemoryFileSystem>(new MemoryFileSystem(disk_, std::move(identity)));
}

void MemoryFileSystem::lose_power() {
  const MutexLock lock(disk_->mutex);
  // What is still open or mapped belongs to processes that are gone too, but whose objects a test
  // holds: they keep their inodes, the names get new ones.
  std::map<std::shared_ptr<Inode>, std::shared_ptr<Inode>> restored;
  for (const auto& [path, inode] : disk_->names) {
    if (--inode->links == 0 && inode->openers == 0) disk_->uncharge(*inode, 0);
  }
  disk_->names.clear();
  for (auto& [path, inode] : disk_->durable_names) {
    auto& fresh = restored[inode];
    if (!fresh) {
      fresh = std::make_shared<Inode>(disk_->next_number++, inode->uid, inode->room);
      fresh->synced = inode->synced;
      fresh->size = fresh->charged = fresh->synced.size();
      disk_->used += fresh->charged;
      if (!fresh->synced.empty())
        std::memcpy(fresh->base, fresh->synced.data(), fresh->synced.size());
    }
    ++fresh->links;
    disk_->names[path] = fresh;
  }
  disk_->durable_names = disk_->names;
}

std::uint64_t MemoryFileSystem::used() const {
  const MutexLock lock(disk_->mutex);
  return disk_->used;
}

std::unique_ptr<File> MemoryFileSystem::open(const Path& given, OpenMode mode) {
  const Path path = Disk::clean(given);
  const MutexLock lock(disk_->mutex);
  if (disk_->directories.count(path) != 0) throw SystemError("open", path.native(), EISDIR);
  auto at = disk_->names.find(path);
  if (mode == OpenMode::kCreateExclusive) {
    if (at != disk_->names.end()) throw SystemError("open", path.native(), EEXIST);
    disk_->need_directory("open", path.parent_path());
    const auto inode =
        std::make_shared<Inode>(disk_->next_number++, process_.uid, disk_->options.max_file_bytes);
    inode->links = 1;
    at = disk_->names.emplace(path, inode).first;
  }
  if (at == disk_->names.end()) throw SystemError("open", path.native(), ENOENT);
  return std::make_unique<MemoryFile>(disk_, at->second, path,
                                      mode != OpenMode::kRead && mode != OpenMode::kReadUnlinked,
                                      std::pair(process_.pid, process_.instance));
}

std::optional<FileStat> MemoryFileSystem::stat(const Path& given) {
  const Path path = Disk::clean(given);
  const MutexLock lock(disk_->mutex);
  if (disk_->directories.count(path) != 0) {
    FileStat s;
    s.device = 1;
    s.uid = process_.uid;
    s.mode = 0700;
    s.is_directory = true;
    return s;
  }
  const auto at = disk_->names.find(path);
  if (at == disk_->names.end()) return std::nullopt;
  return Disk::stat_of(*at->second);
}

void MemoryFileSystem::rename(const Path& given_from, const Path& given_to) {
  const Path from = Disk::clean(given_from);
  const Path to = Disk::clean(given_to);
  const MutexLock lock(disk_->mutex);
  const auto at = disk_->names.find(from);
  if (at == disk_->names.end()) throw SystemError("rename", to.native(), ENOENT);
  if (disk_->directories.count(to) != 0) throw SystemError("rename", to.native(), EISDIR);
  disk_->need_directory("rename", to.parent_path());
  const auto inode = at->second;
  const auto old = disk_->names.find(to);
  if (old != disk_->names.end() && old->second == inode)
    return;  // two names of one file: POSIX does nothing
  if (old != disk_->names.end()) disk_->drop_name(old);
  disk_->names.erase(from);
  disk_->names[to] = inode;
}

void MemoryFileSystem::link(const Path& given_from, const Path& given_to) {
  const Path from = Disk::clean(given_from);
  const Path to = Disk::clean(given_to);
  const MutexLock lock(disk_->mutex);
  const auto at = disk_->names.find(from);
  if (at == disk_->names.end()) throw SystemError("link", to.native(), ENOENT);
  if (disk_->names.count(to) != 0 || disk_->directories.count(to) != 0) {
    throw SystemError("link", to.native(), EEXIST);
  }
  disk_->need_directory("link", to.parent_path());
  ++at->second->links;
  disk_->names[to] = at->second;
}

bool MemoryFileSystem::unlink(const Path& given) {
  const Path path = Disk::clean(given);
  const MutexLock lock(disk_->mutex);
  if (disk_->directories.count(path) != 0) throw SystemError("unlink", path.native(), EISDIR);
  const auto at = disk_->names.find(path);
  if (at == disk_->names.end()) return false;
  disk_->drop_name(at);
  return true;
}

std::vector<std::string> MemoryFileSystem::list(const Path& given) {
  const Path directory = Disk::clean(given);
  const MutexLock lock(disk_->mutex);
  disk_->need_directory("opendir", directory);
  std::vector<std::string> names;
  for (const auto& [path, inode] : disk_->names) {
    if (path.parent_path() == directory) names.push_back(path.filename());
  }
  for (const auto& path : disk_->directories) {
    if (path != "/" && path.parent_path() == directory) names.push_back(path.filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

void MemoryFileSystem::make_directories(const Path& given) {
  const MutexLock lock(disk_->mutex);
  Path made;
  for (const auto& part : Disk::clean(given)) {
    made /= part;
    if (disk_->names.count(made) != 0) throw SystemError("mkdir", made.native(), EEXIST);
    disk_->directories.insert(made);
  }
}

void MemoryFileSystem::sync_directory(const Path& given) {
  const Path directory = Disk::clean(given);
  const MutexLock lock(disk_->mutex);
  disk_->need_directory("fsync", directory);
  const auto inside = [&](const auto& entry) { return entry.first.parent_path() == directory; };
  std::erase_if(disk_->durable_names, inside);
  for (const auto& entry : disk_->names) {
    if (inside(entry)) disk_->durable_names.insert(entry);
  }
}

FreeSpace MemoryFileSystem::free_space(const Path& given) {
  const Path path = Disk::clean(given);
  const MutexLock lock(disk_->mutex);
  if (disk_->names.count(path) == 0) disk_->need_directory("statvfs", path);
  const std::uint64_t total = disk_->options.capacity;
  return {total - std::min(total, disk_->used), total, disk_->options.in_memory};
}

ProcessIdentity MemoryFileSystem::process() { return process_; }

}  // namespace meshstage
