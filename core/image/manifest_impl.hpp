#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <meshstage/core/image/flatten.hpp>
#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage::detail {

/// The versions that this code reads. It writes kFormatVersion unless storages are borrowed.
inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::uint32_t kBorrowingVersion = 2;
constexpr std::uint32_t version_for(std::uint64_t borrowed_bytes) noexcept {
  return borrowed_bytes == 0 ? kFormatVersion : kBorrowingVersion;
}
/// "format version 9; this library reads versions 1 and 2".
std::string describe_unknown_version(std::uint64_t version);

// Reserved names of entries: FORMAT.md, "Names". No path escapes to one.
inline constexpr std::string_view kReservedPrefix = "__meshstage__";
inline constexpr std::string_view kValuesName = "__meshstage__.values";
inline constexpr std::string_view kTrailerName = "__meshstage__.trailer";
inline constexpr std::string_view kPadPrefix = "__meshstage__.pad.";
inline constexpr std::string_view kRootName = "__meshstage__.root";
inline constexpr std::string_view kMetadataKey = "meshstage";

/// The name of a storage's entry: the first path whose tensor covers the whole storage, or a
/// reserved name.
struct StorageName {
  std::string name;
  /// The tensor that gives the entry its dtype and shape; null for plain U8.
  const FlatTensor* cover = nullptr;
};
std::vector<StorageName> storage_names(const FlatState& flat);

/// The JSON of the header, without padding. In `layout` everything but data_begin is set, with
/// offsets counted from the data section's begin.
std::string encode_manifest(const FlatState& flat, const std::vector<StorageName>& names,
                            const ImageLayout& layout);

/// A decoded manifest. It is consistent within itself and with the image's size, but views are
/// checked against their storages only when tensors are made.
struct Manifest {
  struct Range {
    std::uint64_t begin = 0, end = 0;  ///< From the image's begin.
  };
  struct View {
    std::uint32_t storage = 0;
    DType dtype = DType::kU8;
    Shape shape;
    Strides strides;
    std::int64_t offset = 0;
  };
  std::uint64_t data_begin = 0;
  std::uint64_t block_bytes = 0;
  std::vector<Range> storages;
  std::vector<View> views;
  std::uint64_t borrowed_bytes = 0;  ///< From data_begin on; a multiple of block_bytes.
  std::vector<BorrowedPart> borrowed;
  Range values, trailer;
  nlohmann::json tree;
};

/// `front` has at least the manifest; `image_bytes` is the size of the whole image. Throws
/// CorruptData.
Manifest decode_manifest(std::span<const std::byte> front, std::uint64_t image_bytes);

/// The paths of the tensors (the scalars, the padding) that lie in image bytes [begin, end), at
/// most a few: "model.wte.weight and 2 more". `first` becomes the first path. Throws CorruptData.
std::string describe_range(std::span<const std::byte> front, std::uint64_t image_bytes,
                           std::uint64_t begin, std::uint64_t end, std::string& first);

}  // namespace meshstage::detail
