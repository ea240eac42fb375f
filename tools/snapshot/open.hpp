#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/image/safetensors.hpp>
#include <meshstage/core/tree/value.hpp>
#include <meshstage/core/vault/slot_file.hpp>

#include "tools/snapshot/snapshot.hpp"

namespace meshstage::tools {

/// How much of a vault's slot is copied out of it. (Files are mapped.)
enum class Content : std::uint8_t {
  kStructure,  ///< Manifest, scalars and trailer; the tensors' bytes read as zeros.
  kAll,
};

/// A slot of somebody's vault, opened without owning it.
struct OpenSlot {
  SlotFile file;
  ImageInfo info;              ///< As the header said when it was opened.
  std::uint64_t left_out = 0;  ///< Bytes of the image that are not in it: it is a replica.
  /// Throws InvalidState if the slot no longer holds that image.
  void check_unchanged() const;
};

/// A snapshot that was found.
struct Snapshot {
  std::string name;  ///< Of the file or image, printable.
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;  ///< Keeps bytes.
  SafetensorsIndex index;
  std::optional<ImageInfo> image;        ///< Nothing for a safetensors file that is no image.
  std::vector<BorrowedPart> borrowed;    ///< What other ranks have of the image too.
  std::shared_ptr<const OpenSlot> slot;  ///< If it came out of a vault; else it came from `path`.
  std::filesystem::path path;
  /// The files of a checkpoint in several (`path` is their index), by name; else empty. With files,
  /// bytes and index are empty.
  std::vector<Snapshot> files;

  /// The state dict: an image's, or a flat dict of the file's tensors; views of bytes.
  [[nodiscard]] Value state() const;
  /// Of all files.
  [[nodiscard]] std::uint64_t file_bytes() const noexcept;
  /// What the file says of itself; of several files, the first that has a key.
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> metadata() const;
  /// The value of one key of it.
  [[nodiscard]] std::optional<std::string> find_metadata(std::string_view key) const;
  /// The borrowed storages are not in it, and read as zeros.
  [[nodiscard]] bool without_borrowed() const noexcept { return slot && slot->left_out != 0; }
  /// "image of job "gpt2", rank 2 of 4, generation 3, step 85".
  [[nodiscard]] std::string describe() const;
};

/// Opens a file, or an image by its name (see ImageName). Throws InvalidArgument or NotFound (exit
/// 2) if there is no such thing, or all content is asked for of a replica that lacks some;
/// CorruptData if it is not sound.
Snapshot open_snapshot(const std::string& what, const Places& places, Content content);
Snapshot open_file(const std::filesystem::path& path);
Snapshot open_slot(const VaultListing& vault, SlotKey key, Content content);

/// Checks every digest of a sealed slot, block by block, without a copy of it. Throws CorruptData,
/// and InvalidState if the slot was overwritten meanwhile.
ImageInfo verify_slot(const VaultListing& vault, SlotKey key);

}  // namespace meshstage::tools
