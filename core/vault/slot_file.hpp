#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/vault/listing.hpp>
#include <meshstage/core/vault/slot.hpp>

namespace meshstage {

/// A view of one slot of a listed vault, for tools. It takes no ownership and no lease, so a living
/// owner may overwrite the slot at any moment. Take info() before and after reading, and use the
/// bytes only if both are equal and sealed (every staging has another image digest). Threads: any.
class MESHSTAGE_API SlotFile {
 public:
  /// Throws NotFound if the slot's file is gone, IoError, InvalidState (another user's).
  [[nodiscard]] static SlotFile open(const VaultListing& vault, SlotKey key,
                                     FileSystem& fs = real_file_system());

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// The present header.
  [[nodiscard]] SlotInfo info() const;
  /// Copies bytes of the image from `offset` on. Throws CorruptData if the file ends before them.
  void read_image(std::span<std::byte> into, std::uint64_t offset) const;

 private:
  SlotFile(std::filesystem::path path, std::unique_ptr<File> file)
      : path_(std::move(path)), file_(std::move(file)) {}
  std::filesystem::path path_;
  std::unique_ptr<File> file_;
};

}  // namespace meshstage
