#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/memory/resource.hpp>

namespace meshstage {

/// Where other processes of this user find a byte of shared memory: they open `file` and map it.
/// The name is valid while the process that made the memory keeps the memory; a mapping once made
/// stays.
struct SharedLocation {
  std::string file;          ///< "/proc/4711/fd/9".
  std::uint64_t offset = 0;  ///< Bytes from the file's begin.
};

/// Memory that other processes can map: each block is an anonymous file in memory (memfd) of its
/// own, so nothing is left behind, however the process ends. All pages of a block are there when
/// allocate() returns (a store never ends in SIGBUS). Forked children and core dumps do not have
/// them. Blocks are page aligned and zero. Threads: any.
class MESHSTAGE_API SharedMemory final : public MemoryResource {
 public:
  SharedMemory() = default;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() override;

  /// Where other processes find the byte at `p`; nothing if `p` is in none of the blocks.
  [[nodiscard]] std::optional<SharedLocation> locate(const void* p) const;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
  [[nodiscard]] bool do_is_equal(const MemoryResource& other) const noexcept override;

  struct Block {
    std::size_t bytes = 0;
    int descriptor = -1;
    std::int64_t process = 0;  // a forked child has the descriptor, not the pages
  };
  mutable Mutex mutex_;
  std::map<const std::byte*, Block> blocks_ MESHSTAGE_GUARDED_BY(mutex_);
};

/// The other end of locate(): maps the whole block that SharedLocation::file names now. A process
/// has one mapping of a block, as long as any copy of the result lives. The mapping outlives the
/// process that made the memory. Throws IoError. Threads: any.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<const std::span<std::byte>> map_shared(
    const std::string& file);

}  // namespace meshstage
