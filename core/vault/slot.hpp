#pragma once
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <meshstage/core/image/identity.hpp>

namespace meshstage {

/// A slot of the vault of some rank. The slots with owner_rank == the vault's own rank hold its own
/// images, the others replicas for that ward: its images without what other ranks have too
/// (core/image/replica.hpp). Two each: one holds the base while the other is written.
struct SlotKey {
  int owner_rank = 0;
  int index = 0;  ///< 0 or 1.
  friend auto operator<=>(const SlotKey&, const SlotKey&) = default;
};

enum class SlotState : std::uint8_t {
  kEmpty,    ///< Nothing to be had: never written, or its header does not match its digest
             ///< (`damaged`).
  kWriting,  ///< Its bytes may be anything.
  kSealed,   ///< Holds the image that the header names; the image's own digests are yet to be
             ///< checked.
};
[[nodiscard]] MESHSTAGE_API std::string_view to_string(SlotState state) noexcept;

struct SlotInfo {
  SlotState state = SlotState::kEmpty;
  /// kSealed: all of it. kWriting: identity of what is being written, and as image_bytes those that
  /// begin_write() was asked for. kEmpty: defaults.
  ImageInfo image;
  std::uint64_t capacity = 0;  ///< Bytes that fit without growing.
  std::string damaged;  ///< Why the header is not trusted; empty if nothing is wrong with it.
  std::int64_t writer_pid = 0;  ///< Who wrote the header; for display only.
};

/// Bytes that a sealed slot in the vault of `vault_rank` has of an image: in an own slot all, in a
/// held one the replica's.
[[nodiscard]] inline std::uint64_t stored_bytes(SlotKey key, int vault_rank,
                                                const ImageInfo& image) noexcept {
  return key.owner_rank == vault_rank ? image.image_bytes : image.replica_bytes();
}

namespace detail {
struct VaultState;
struct Slot;
struct OlderSlot;
}  // namespace detail

/// Permission to overwrite one slot: state WRITING was in memory before this existed. Move-only.
/// Destroyed unsealed it leaves the slot WRITING: its old image is gone, and it can be begun again.
/// Threads: image() from any number at once; seal() by one, after every store to the image happened
/// before it (joined, or released and acquired).
class MESHSTAGE_API WriteLease {
 public:
  WriteLease() = default;
  WriteLease(WriteLease&&) noexcept = default;
  WriteLease& operator=(WriteLease&& other) noexcept;
  ~WriteLease();

  [[nodiscard]] bool valid() const noexcept { return slot_ != nullptr; }
  /// The image's or the replica's bytes, as many as begin_write() was asked for, 4096-aligned; they
  /// keep what the slot held before.
  [[nodiscard]] std::span<std::byte> image() const noexcept;
  /// What the slot held, sealed, when it was begun; nothing if it was empty, WRITING, or too
  /// damaged to say. Until they are overwritten the first manifest_bytes of image() still are its
  /// manifest, so a sender with the same manifest digest can skip it.
  [[nodiscard]] const std::optional<ImageInfo>& previous() const noexcept { return previous_; }
  [[nodiscard]] SlotKey key() const noexcept { return key_; }

  /// Fences all stores, then writes the SEALED header; the lease is over (also when this throws
  /// because of fencing). `info` must carry the identity and size given to begin_write(): the
  /// image's for an own slot, the replica's for a held one. Throws InvalidArgument if it does not
  /// (then the lease is still good), InvalidState if the vault was fenced or removed.
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
  /// What is stored: the image, or in a held slot its replica.
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
