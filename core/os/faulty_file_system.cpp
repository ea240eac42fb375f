#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <utility>

namespace meshstage {

std::string_view to_string(FileOperation operation) noexcept {
  switch (operation) {
    case FileOperation::kOpen:
      return "open";
    case FileOperation::kReadAt:
      return "read";
    case FileOperation::kWriteAt:
      return "write";
    case FileOperation::kSync:
      return "fsync";
    case FileOperation::kFileStat:
      return "fstat";
    case FileOperation::kTruncate:
      return "ftruncate";
    case FileOperation::kReserve:
      return "posix_fallocate";
    case FileOperation::kMap:
      return "mmap";
    case FileOperation::kTryLock:
      return "fcntl F_SETLK";
    case FileOperation::kLockHolder:
      return "fcntl F_GETLK";
    case FileOperation::kStat:
      return "stat";
    case FileOperation::kRename:
      return "rename";
    case FileOperation::kLink:
      return "link";
    case FileOperation::kUnlink:
      return "unlink";
    case FileOperation::kList:
      return "opendir";
    case FileOperation::kMakeDirectories:
      return "mkdir";
    case FileOperation::kSyncDirectory:
      return "fsync directory";
    case FileOperation::kFreeSpace:
      return "statvfs";
  }
  return "unknown";
}

/// Shared with the files that were opened: a fault set later hits them too.
class FaultyFileSystem::State {
 public:
  void arm(std::optional<FileOperation> operation, std::uint64_t nth, int error_number,
           bool stays) {
    const MutexLock lock(mutex_);
    operation_ = operation;
    countdown_ = nth;
    error_ = error_number;
    stays_ = stays;
    fired_.reset();
  }
  /// Counts the call; throws if it is the one.
  void enter(FileOperation operation, const std::filesystem::path& path) {
    MutexLock lock(mutex_);
    ++calls_[static_cast<std::size_t>(operation)];
    if (blocks_ == operation) {
      blocks_.reset();
      const auto mine = ++blocked_;
      changed_.notify_all();
      changed_.wait(lock, [&]() MESHSTAGE_REQUIRES(mutex_) { return released_ >= mine; });
    }
    if (countdown_ == 0 || (operation_ && *operation_ != operation)) return;
    if (countdown_ > 1) {
      --countdown_;
      return;
    }
    if (!stays_) countdown_ = 0;
    fired_ = operation;
    throw SystemError(to_string(operation), path.native(), error_);
  }
  void block(std::optional<FileOperation> operation) {
    const MutexLock lock(mutex_);
    blocks_ = operation;
    released_ = blocked_;
    changed_.notify_all();
  }
  void wait_until_blocked() {
    MutexLock lock(mutex_);
    changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return blocked_ > released_; });
  }
  [[nodiscard]] std::optional<FileOperation> fired() const {
    const MutexLock lock(mutex_);
    return fired_;
  }
  void set_max_write(std::size_t bytes) {
    const MutexLock lock(mutex_);
    max_write_ = bytes == 0 ? std::numeric_limits<std::size_t>::max() : bytes;
  }
  [[nodiscard]] std::size_t max_write() const {
    const MutexLock lock(mutex_);
    return max_write_;
  }
  [[nodiscard]] std::uint64_t calls(std::optional<FileOperation> operation) const {
    const MutexLock lock(mutex_);
    if (operation) return calls_[static_cast<std::size_t>(*operation)];
    std::uint64_t sum = 0;
    for (const auto n : calls_) sum += n;
    return sum;
  }

 private:
  mutable Mutex mutex_;
  std::optional<FileOperation> operation_ MESHSTAGE_GUARDED_BY(mutex_);  // nothing: any
  std::uint64_t countdown_ MESHSTAGE_GUARDED_BY(mutex_) = 0;             // 0: no fault pending
  int error_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  bool stays_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  std::optional<FileOperation> fired_ MESHSTAGE_GUARDED_BY(mutex_);
  CondVar changed_;
  std::optional<FileOperation> blocks_ MESHSTAGE_GUARDED_BY(mutex_);
  std::uint64_t blocked_ MESHSTAGE_GUARDED_BY(mutex_) = 0;   // calls that hung,
  std::uint64_t released_ MESHSTAGE_GUARDED_BY(mutex_) = 0;  // and those of them that went on
  std::size_t max_write_ MESHSTAGE_GUARDED_BY(mutex_) = std::numeric_limits<std::size_t>::max();
  std::array<std::uint64_t, kFileOperationCount> calls_ MESHSTAGE_GUARDED_BY(mutex_){};
};

namespace {

class FaultyFile final : public File {
 public:
  FaultyFile(std::unique_ptr<File> inner, std::shared_ptr<FaultyFileSystem::State> state,
             std::filesystem::path path)
      : inner_(std::move(inner)), state_(std::move(state)), path_(std::move(path)) {}

  std::size_t read_at(std::span<std::byte> into, std::uint64_t offset) override {
    state_->enter(FileOperation::kReadAt, path_);
    return inner_->read_at(into, offset);
  }
  std::size_t write_at(std::span<const std::byte> bytes, std::uint64_t offset) override {
    state_->enter(FileOperation::kWriteAt, path_);
    return inner_->write_at(bytes.first(std::min(bytes.size(), state_->max_write())), offset);
  }
  void sync() override {
    state_->enter(FileOperation::kSync, path_);
    inner_->sync();
  }
  FileStat stat() override {
    state_->enter(FileOperation::kFileStat, path_);
    return inner_->stat();
  }
  void truncate(std::uint64_t size) override {
    state_->enter(FileOperation::kTruncate, path_);
    inner_->truncate(size);
  }
  void reserve(std::uint64_t size) override {
    state_->enter(FileOperation::kReserve, path_);
    inner_->reserve(size);
  }
  bool reserve_huge(std::uint64_t from, std::uint64_t to) noexcept override {
    return inner_->reserve_huge(from, to);  // its failing is no error
  }
  std::unique_ptr<MappedRegion> map(std::uint64_t length, MapAccess access) override {
    state_->enter(FileOperation::kMap, path_);
    return inner_->map(length, access);
  }
  bool try_lock() override {
    state_->enter(FileOperation::kTryLock, path_);
    return inner_->try_lock();
  }
  std::optional<std::int64_t> lock_holder() override {
    state_->enter(FileOperation::kLockHolder, path_);
    return inner_->lock_holder();
  }

 private:
  std::unique_ptr<File> inner_;
  std::shared_ptr<FaultyFileSystem::State> state_;
  std::filesystem::path path_;
};

}  // namespace

FaultyFileSystem::FaultyFileSystem(FileSystem& inner)
    : inner_(inner), state_(std::make_shared<State>()) {}
FaultyFileSystem::~FaultyFileSystem() = default;

void FaultyFileSystem::fail(FileOperation operation, std::uint64_t nth, int error_number) {
  state_->arm(operation, nth, error_number, false);
}
void FaultyFileSystem::fail_any(std::uint64_t nth, int error_number) {
  state_->arm(std::nullopt, nth, error_number, false);
}
void FaultyFileSystem::fail_from(std::uint64_t nth, int error_number) {
  state_->arm(std::nullopt, nth, error_number, true);
}
void FaultyFileSystem::clear_faults() { state_->arm(std::nullopt, 0, 0, false); }
void FaultyFileSystem::block(FileOperation operation) { state_->block(operation); }
void FaultyFileSystem::wait_until_blocked() { state_->wait_until_blocked(); }
void FaultyFileSystem::unblock() { state_->block(std::nullopt); }
std::optional<FileOperation> FaultyFileSystem::fired() const { return state_->fired(); }
void FaultyFileSystem::shorten_writes(std::size_t max_bytes) { state_->set_max_write(max_bytes); }
std::uint64_t FaultyFileSystem::calls(FileOperation operation) const {
  return state_->calls(operation);
}
std::uint64_t FaultyFileSystem::calls() const { return state_->calls(std::nullopt); }

std::unique_ptr<File> FaultyFileSystem::open(const Path& path, OpenMode mode) {
  state_->enter(FileOperation::kOpen, path);
  return std::make_unique<FaultyFile>(inner_.open(path, mode), state_, path);
}
std::optional<FileStat> FaultyFileSystem::stat(const Path& path) {
  state_->enter(FileOperation::kStat, path);
  return inner_.stat(path);
}
void FaultyFileSystem::rename(const Path& from, const Path& to) {
  state_->enter(FileOperation::kRename, to);
  inner_.rename(from, to);
}
void FaultyFileSystem::link(const Path& from, const Path& to) {
  state_->enter(FileOperation::kLink, to);
  inner_.link(from, to);
}
bool FaultyFileSystem::unlink(const Path& path) {
  state_->enter(FileOperation::kUnlink, path);
  return inner_.unlink(path);
}
std::vector<std::string> FaultyFileSystem::list(const Path& directory) {
  state_->enter(FileOperation::kList, directory);
  return inner_.list(directory);
}
void FaultyFileSystem::make_directories(const Path& directory) {
  state_->enter(FileOperation::kMakeDirectories, directory);
  inner_.make_directories(directory);
}
void FaultyFileSystem::sync_directory(const Path& directory) {
  state_->enter(FileOperation::kSyncDirectory, directory);
  inner_.sync_directory(directory);
}
FreeSpace FaultyFileSystem::free_space(const Path& path) {
  state_->enter(FileOperation::kFreeSpace, path);
  return inner_.free_space(path);
}
ProcessIdentity FaultyFileSystem::process() { return inner_.process(); }

}  // namespace meshstage
