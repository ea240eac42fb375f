#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include <meshstage/core/device/device.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/memory/shared_memory.hpp>

namespace meshstage {

/// Properties of a storage's memory, besides its place and size.
struct StorageTraits {
  bool pinned = false;     ///< Page-locked for a device.
  bool shared = false;     ///< Other processes can map it.
  bool read_only = false;  ///< Tensor::data refuses to write it.
  /// Memory of another library: two such storages may overlap, and then they count as one memory.
  bool external = false;
  /// Where other processes find the first byte of shared memory, if they can.
  std::optional<SharedLocation> location = std::nullopt;
};

/// A handle to a run of bytes of which tensors are views. Copies of the handle are the same
/// storage, which has one identity() and a size that never changes. The memory is freed when the
/// last handle is gone. Threads: handles are as safe as shared_ptr; the caller ensures that no
/// thread reads bytes while another writes them.
class MESHSTAGE_API Storage {
 public:
  /// No storage; only valid() and comparison may be called.
  Storage() = default;

  /// New CPU memory, aligned to 64 bytes, contents unspecified. Throws OutOfMemory.
  [[nodiscard]] static Storage allocate(std::size_t nbytes);
  /// Memory that `owner` keeps alive (a mapping, an arena, another storage). `data` may be null
  /// only if nbytes is 0.
  [[nodiscard]] static Storage wrap(void* data, std::size_t nbytes,
                                    std::shared_ptr<const void> owner, StorageTraits traits = {},
                                    Device device = kCpu);
  /// External memory. `deleter(data)` runs exactly once: after the last handle is gone, or if this
  /// function throws. It may be empty.
  [[nodiscard]] static Storage from_blob(void* data, std::size_t nbytes,
                                         std::function<void(void*)> deleter,
                                         StorageTraits traits = {.external = true},
                                         Device device = kCpu);

  [[nodiscard]] bool valid() const noexcept { return impl_ != nullptr; }
  [[nodiscard]] std::byte* data() const noexcept { return impl_->data; }
  [[nodiscard]] std::size_t nbytes() const noexcept { return impl_->nbytes; }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {impl_->data, impl_->nbytes}; }
  [[nodiscard]] Device device() const noexcept { return impl_->device; }
  [[nodiscard]] const StorageTraits& traits() const noexcept { return impl_->traits; }
  [[nodiscard]] bool is_pinned() const noexcept { return impl_->traits.pinned; }
  [[nodiscard]] bool is_shared() const noexcept { return impl_->traits.shared; }
  /// Where other processes find a shared storage's first byte; nothing if there is no such place.
  [[nodiscard]] const std::optional<SharedLocation>& location() const noexcept {
    return impl_->traits.location;
  }

  /// Equal for handles of one storage; unique among the storages that live or that a WeakStorage
  /// remembers. For hashing; do not dereference it.
  [[nodiscard]] const void* identity() const noexcept { return impl_.get(); }
  /// True for handles of one storage; does not compare bytes.
  friend bool operator==(const Storage& a, const Storage& b) noexcept = default;

 private:
  friend class WeakStorage;
  struct Impl {
    std::byte* data = nullptr;
    std::size_t nbytes = 0;
    Device device;
    StorageTraits traits;
    std::shared_ptr<const void> owner;
  };
  explicit Storage(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// Remembers a storage without keeping its memory. While a WeakStorage remembers it, no other
/// storage gets its identity.
class WeakStorage {
 public:
  WeakStorage() = default;
  explicit WeakStorage(const Storage& storage)
      : impl_(storage.impl_), identity_(storage.identity()) {}
  /// The storage, or an invalid one if its last handle is gone.
  [[nodiscard]] Storage lock() const noexcept { return Storage(impl_.lock()); }
  [[nodiscard]] bool expired() const noexcept { return impl_.expired(); }
  [[nodiscard]] const void* identity() const noexcept { return identity_; }

 private:
  std::weak_ptr<const Storage::Impl> impl_;
  const void* identity_ = nullptr;
};

}  // namespace meshstage
