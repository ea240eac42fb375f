#pragma once
#include <compare>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <meshstage/core/identity/identity.hpp>

namespace meshstage {

/// Names a slot of a rank's vault. Slots whose owner_rank is the vault's own rank have that rank's
/// images. The others have the replicas of the ward owner_rank: its images without the bytes
/// borrowed from other ranks (core/image/replica.hpp). Each owner has two slots: one has the base
/// while the other is written.
struct SlotKey {
  int owner_rank = 0;
  int index = 0;  ///< 0 or 1.
  friend auto operator<=>(const SlotKey&, const SlotKey&) = default;
};

enum class SlotState : std::uint8_t {
  kEmpty,    ///< Has no image: never written, or its header does not match its digest (`damaged`).
  kWriting,  ///< Its bytes may be anything.
  kSealed,  ///< Has the image that the header names; the image's own digests are yet to be checked.
};
[[nodiscard]] MESHSTAGE_API std::string_view to_string(SlotState state) noexcept;

struct SlotInfo {
  SlotState state = SlotState::kEmpty;
  /// kSealed: the whole info. kWriting: the identity of the image being written, and as image_bytes
  /// the bytes given to begin_write(). kEmpty: defaults.
  ImageInfo image;
  std::uint64_t capacity = 0;   ///< Bytes that fit without growing.
  std::string damaged;          ///< Why the header is not trusted; empty if it is.
  std::int64_t writer_pid = 0;  ///< The process that wrote the header; for display only.
};

/// Bytes of an image that a sealed slot in the vault of `vault_rank` has: all in an own slot, the
/// replica's in a ward's slot.
[[nodiscard]] inline std::uint64_t stored_bytes(SlotKey key, int vault_rank,
                                                const ImageInfo& image) noexcept {
  return key.owner_rank == vault_rank ? image.image_bytes : image.replica_bytes();
}

/// A mapped, sealed slot of a stray vault, or of an older incarnation. No process changes its bytes
/// while the vault that took it has it. The bytes can be read as long as `keep` lives; the caller
/// must verify them.
struct StraySlot {
  int vault = 0;    ///< The rank whose vault it is.
  SlotKey key;      ///< An image of that rank if key.owner_rank is `vault`, else a replica.
  ImageInfo image;  ///< As the header says.
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> keep;
  std::uint64_t incarnation = 0;    ///< Of that vault.
  std::filesystem::path path = {};  ///< Of the slot's file, when it was mapped.
};

namespace detail {
struct VaultState;
struct Slot;
struct OlderSlot;
}  // namespace detail

/// Permission to overwrite one slot. The slot's state is WRITING before the lease exists.
/// Move-only. A lease that is destroyed unsealed leaves the slot WRITING: its old image is gone,
/// and a new begin_write() may follow.
/// Threads: any number may use image() at once. One calls seal(), and every store to the image must
/// happen before that call (joined, or released and acquired).
class MESHSTAGE_API WriteLease {
 public:
  WriteLease() = default;
  WriteLease(WriteLease&&) noexcept = default;
  WriteLease& operator=(WriteLease&& other) noexcept;
  ~WriteLease();

  [[nodiscard]] bool valid() const noexcept { return slot_ != nullptr; }
  /// The bytes for the image or replica, as many as were given to begin_write(), aligned to 4096.
  /// At first they are those that the slot had before.
  [[nodiscard]] std::span<std::byte> image() const noexcept;
  /// The sealed image that the slot had at begin_write(); nothing if it was empty, WRITING or
  /// damaged. Until they are overwritten, the first manifest_bytes of image() still are that
  /// image's manifest, so a sender with the same manifest digest can skip the manifest.
  [[nodiscard]] const std::optional<ImageInfo>& previous() const noexcept { return previous_; }
  [[nodiscard]] SlotKey key() const noexcept { return key_; }

  /// Fences all stores, then writes the SEALED header and ends the lease. `info` must have the
  /// identity and size given to begin_write(): the image's size for an own slot, the replica's for
  /// a ward's slot. Throws InvalidArgument if it does not (the lease stays valid), Fenced, or
  /// InvalidState if the vault was removed (the lease has ended).
  void seal(const ImageInfo& info);
  /// Gives the slot back unsealed.
  void abandon() noexcept;

 private:
  friend class Vault;
  std::shared_ptr<detail::VaultState> vault_;
  std::shared_ptr<detail::Slot> slot_;
  SlotKey key_;
  ImageIdentity identity_;
  std::uint64_t bytes_ = 0;
  std::optional<ImageInfo> previous_;
};

/// Keeps a sealed slot from being overwritten while it is read, sent or persisted. Move-only;
/// several on one slot are fine. Threads: any.
class MESHSTAGE_API ReadLease {
 public:
  ReadLease() = default;
  ReadLease(ReadLease&&) noexcept = default;
  ReadLease& operator=(ReadLease&& other) noexcept;
  ~ReadLease();

  [[nodiscard]] bool valid() const noexcept { return slot_ != nullptr; }
  /// The stored bytes: the image, or in a ward's slot the replica.
  [[nodiscard]] std::span<const std::byte> image() const noexcept;
  [[nodiscard]] const ImageInfo& info() const noexcept { return info_; }
  [[nodiscard]] SlotKey key() const noexcept { return key_; }
  void release() noexcept;

 private:
  friend class Vault;
  std::shared_ptr<detail::VaultState> vault_;
  std::shared_ptr<detail::Slot> slot_;
  SlotKey key_;
  ImageInfo info_;
  std::uint64_t bytes_ = 0;
};

}  // namespace meshstage
