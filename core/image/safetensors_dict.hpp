#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/image/safetensors.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

// Any safetensors file is a state dict: a flat Dict of tensors by name. (An image of ours is a
// safetensors file too, but carries more: see decode_image().)

/// True if the file's metadata say that it is an image. decode_image() finds out whether the image
/// is sound.
[[nodiscard]] MESHSTAGE_API bool is_image(const SafetensorsIndex& index) noexcept;

/// Attributes of a tensor whose dtype has no element type in this library: F4 (two elements a
/// byte), F6_E2M3, F6_E3M2, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ. kSafetensorsDType has the dtype's
/// name, kSafetensorsShape the shape, a List of ints. The tensor itself has the bytes unchanged, as
/// U8 with one dimension.
inline constexpr const char* kSafetensorsDType = "safetensors.dtype";
inline constexpr const char* kSafetensorsShape = "safetensors.shape";

/// The tensors of any safetensors file, in the order of their bytes, by their names as written
/// (dots are part of the key). The tensors are views of `file`, which `owner` keeps alive, with
/// `traits`; a tensor whose bytes are not aligned for its dtype is copied. No two tensors share a
/// storage. Treats `file` as hostile: throws CorruptData like SafetensorsIndex::parse(), and takes
/// no more memory than a small multiple of the header and the copies.
[[nodiscard]] MESHSTAGE_API Dict decode_safetensors(std::span<const std::byte> file,
                                                    std::shared_ptr<const void> owner,
                                                    StorageTraits traits = {.read_only = true});

/// The plan of a plain safetensors file: the header, then the elements of `tensors`, each
/// row-major, one after the other without gaps.
struct SafetensorsPlan {
  std::vector<std::byte> header;  ///< Length, JSON and padding: a multiple of 8 bytes.
  std::vector<Tensor> tensors;    ///< In the file's order; any strides.
  std::uint64_t file_bytes = 0;
};

/// Lays out a file that every safetensors reader opens, load_state_file() included. `tensors` is a
/// flat Dict: string keys, tensors only. Tensors of wide dtypes come first, so that all are
/// aligned. The attributes kSafetensorsDType and kSafetensorsShape are honoured, others are left
/// out. C128, which the format lacks, is written as F64 with a last dimension of 2.
/// Throws InvalidArgument, with path() = the name, for:
/// - anything in the Dict that is no tensor;
/// - a name that is not UTF-8 or is "__metadata__";
/// - more than kMaxDims dims;
/// - a key of the metadata that comes twice or is "meshstage", which marks an image;
/// - a header above kMaxHeaderBytes, or sizes that wrap 64 bits.
/// Python's reader refuses a header above kMaxPythonHeaderBytes.
[[nodiscard]] MESHSTAGE_API SafetensorsPlan plan_safetensors(
    const Dict& tensors, const std::vector<std::pair<std::string, std::string>>& metadata = {});

}  // namespace meshstage
