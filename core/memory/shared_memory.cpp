#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/core/memory/first_touch.hpp>
#include <meshstage/core/memory/shared_memory.hpp>
#include <meshstage/core/os/size_signal.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

namespace meshstage {
namespace {

constexpr std::size_t kPage = 4096;

// Closes itself unless it was released.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// The mapping of a block that another process made.
struct SharedPages {
  SharedPages(int descriptor, std::size_t length, const std::string& file) {
    void* const p = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (p == MAP_FAILED) throw_errno("mmap", file, errno);
    bytes = {static_cast<std::byte*>(p), length};
  }
  SharedPages(const SharedPages&) = delete;
  SharedPages& operator=(const SharedPages&) = delete;
  ~SharedPages() { ::munmap(bytes.data(), bytes.size()); }

  std::span<std::byte> bytes;
};

[[noreturn]] void refuse(std::size_t bytes, const char* call, int error) {
  throw OutOfMemory("the system has no " + std::to_string(bytes) + " bytes of shared memory (" +
                    call + ": " + std::generic_category().message(error) +
                    "); stage a smaller state or raise the memory limit");
}

// Every page is there afterwards.
void reserve(int file, std::size_t bytes) {
  int error = 0;
  do {
    error = ::posix_fallocate(file, 0, static_cast<off_t>(bytes));
  } while (error == EINTR);
  if (error != 0) refuse(bytes, "posix_fallocate", error);
}

}  // namespace

SharedMemory::~SharedMemory() {
  for (const auto& [base, block] : blocks_) ::close(block.descriptor);
}

std::optional<SharedLocation> SharedMemory::locate(const void* p) const {
  const MutexLock lock(mutex_);
  const auto* at = static_cast<const std::byte*>(p);
  auto it = blocks_.upper_bound(at);
  if (it == blocks_.begin()) return std::nullopt;
  --it;
  const auto offset = static_cast<std::size_t>(at - it->first);
  if (offset >= it->second.bytes) return std::nullopt;
  return SharedLocation{"/proc/" + std::to_string(it->second.process) + "/fd/" +
                            std::to_string(it->second.descriptor),
                        offset};
}

void* SharedMemory::do_allocate(std::size_t bytes, std::size_t alignment) {
  if (alignment > kPage) throw InvalidArgument("shared memory is aligned to pages, not more");
  bytes = std::max<std::size_t>(bytes, 1);
  if (bytes > static_cast<std::size_t>(PTRDIFF_MAX)) refuse(bytes, "size", EOVERFLOW);
  Descriptor file(::memfd_create("meshstage", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file.get() < 0) refuse(bytes, "memfd_create", errno);
  const detail::SizeSignalBlocked blocked;
  // One thread makes pages faster by posix_fallocate, and so do two; three and more by touching
  // them first. What posix_fallocate finds there costs it little, and it alone says that there is
  // room for all.
  const unsigned hands = default_copy_threads(available_processors(), Beside::kNothing);
  if (hands <= 2) reserve(file.get(), bytes);
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) refuse(bytes, "ftruncate", errno);
  // Whoever opens it cannot take the pages away from under us.
  if (::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    throw_errno("fcntl F_ADD_SEALS", "memfd", errno);
  void* const p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (p == MAP_FAILED) refuse(bytes, "mmap", errno);
  const auto length = (bytes + kPage - 1) / kPage * kPage;
  first_touch({static_cast<std::byte*>(p), length}, hands);
  try {
    if (hands > 2) reserve(file.get(), bytes);
  } catch (...) {
    ::munmap(p, bytes);
    throw;
  }
  // Advice that a kernel may lack; forks and dumps are then as with any memory.
  ::madvise(p, bytes, MADV_DONTFORK);
  ::madvise(p, bytes, MADV_DONTDUMP);
  try {
    const MutexLock lock(mutex_);
    blocks_.emplace(static_cast<std::byte*>(p), Block{bytes, file.get(), ::getpid()});
  } catch (...) {
    ::munmap(p, bytes);
    throw;
  }
  file.release();
  return p;
}

void SharedMemory::do_deallocate(void* p, std::size_t, std::size_t) {
  Block block;
  {
    const MutexLock lock(mutex_);
    const auto it = blocks_.find(static_cast<const std::byte*>(p));
    block = it->second;
    blocks_.erase(it);
  }
  if (block.process == ::getpid()) ::munmap(p, block.bytes);
  ::close(block.descriptor);
}

std::shared_ptr<const std::span<std::byte>> map_shared(const std::string& file) {
  // A name like /proc/4711/fd/9 may be another block's later, so blocks are known by their device
  // and inode.
  struct Mapped {
    Mutex mutex;
    std::map<std::pair<dev_t, ino_t>, std::weak_ptr<const std::span<std::byte>>> blocks
        MESHSTAGE_GUARDED_BY(mutex);
  };
  static Mapped mapped;
  const Descriptor descriptor(::open(file.c_str(), O_RDWR | O_CLOEXEC));
  if (descriptor.get() < 0) throw_errno("open", file, errno);
  struct stat status{};
  if (::fstat(descriptor.get(), &status) != 0) throw_errno("fstat", file, errno);
  const MutexLock lock(mapped.mutex);
  std::erase_if(mapped.blocks, [](const auto& entry) { return entry.second.expired(); });
  auto& known = mapped.blocks[{status.st_dev, status.st_ino}];
  if (auto there = known.lock()) return there;
  const auto pages = std::make_shared<const SharedPages>(
      descriptor.get(), static_cast<std::size_t>(status.st_size), file);
  const std::shared_ptr<const std::span<std::byte>> block(pages, &pages->bytes);
  known = block;
  return block;
}

bool SharedMemory::do_is_equal(const MemoryResource& other) const noexcept {
  return this == &other;
}

}  // namespace meshstage
