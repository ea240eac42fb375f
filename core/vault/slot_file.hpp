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

/// A look at one slot of a listed vault, for tools: it owns nothing and holds nothing back. A
/// living owner may overwrite the slot at any moment: take info() before and after reading, and use
/// what was read only if both are the same and sealed (every staging has another image digest).
/// Threads: any.
class MESHSTAGE_API SlotFile {
 public:
  /// Throws NotFound if the slot's file is gone, IoError, InvalidState (another user's).
  [[nodiscard]] static SlotFile open(const VaultListing& vault, SlotKey key,
                                     FileSystem& fs = real_file_system());

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// The header as it is now.
  [[nodiscard]] SlotInfo info() const;
  /// Copies bytes of the image from `offset`. Throws CorruptData where the file ends before.
  void read_image(std::span<std::byte> into, std::uint64_t offset) const;

 private:
  SlotFile(std::filesystem::path path, std::unique_ptr<File> file)
      : path_(std::move(path)), file_(std::move(file)) {}
  std::filesystem::path path_;
  std::unique_ptr<File> file_;
};

}  // namespace meshstage
