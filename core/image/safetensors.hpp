#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// One tensor of a safetensors file. `begin` and `end` are bytes from the start of the data
/// section.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;  ///< As written: "F32", "BF16", ...; its size is always known.
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// The longest header that meshstage reads and writes: a million tensors with names of 800
/// characters.
inline constexpr std::uint64_t kMaxHeaderBytes = std::uint64_t{2} << 30U;
/// The most dims of a tensor that meshstage reads and writes.
inline constexpr std::size_t kMaxDims = 1024;
/// Python's safetensors refuses longer headers.
inline constexpr std::uint64_t kMaxPythonHeaderBytes = 100'000'000;

struct SafetensorsLimits {
  /// A longer header is refused before memory is allocated for it.
  std::uint64_t max_header_bytes = kMaxHeaderBytes;
};

/// The header of any safetensors file (https://huggingface.co/docs/safetensors), ours or another
/// program's:
///     [u64 little-endian header length N][N bytes of JSON, padded with spaces][data section]
/// Treats the bytes as hostile. Takes no more memory than a small multiple of the header's length.
/// A header that parse() accepted is sound: names are unique valid UTF-8, and dtype and shape agree
/// with each entry's size. Entries ascend by offset and cover the data section exactly (no overlap,
/// no hole, no byte beyond). Python's safetensors accepts the same headers, and duplicate names
/// too.
class MESHSTAGE_API SafetensorsIndex {
 public:
  /// `file` is a whole file (or image). Throws CorruptData: message and path() name the tensor, and
  /// the message names the byte of the file.
  [[nodiscard]] static SafetensorsIndex parse(std::span<const std::byte> file,
                                              const SafetensorsLimits& limits = {});
  /// parse() with only the front of a file: `front` has at least the length and the JSON, and the
  /// file has `file_bytes` bytes.
  [[nodiscard]] static SafetensorsIndex parse_front(std::span<const std::byte> front,
                                                    std::uint64_t file_bytes,
                                                    const SafetensorsLimits& limits = {});
  /// The begin of the data section, 8 + N, read from the first 8 bytes alone and checked against
  /// `file_bytes` and the limit. For readers that fetch the front of a file. Throws CorruptData.
  [[nodiscard]] static std::uint64_t read_data_begin(std::span<const std::byte> front,
                                                     std::uint64_t file_bytes,
                                                     const SafetensorsLimits& limits = {});

  /// Ascending by begin, then end, then name.
  [[nodiscard]] const std::vector<SafetensorsEntry>& entries() const noexcept { return entries_; }
  /// The string pairs of "__metadata__", in the file's order.
  [[nodiscard]] const std::vector<std::pair<std::string, std::string>>& metadata() const noexcept {
    return metadata_;
  }
  /// The entry of that name, or null. O(log n).
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const noexcept;
  [[nodiscard]] std::optional<std::string_view> find_metadata(std::string_view key) const noexcept;
  /// data_begin(): bytes from the start of the file to the data section. data_bytes(): bytes of the
  /// data section.
  [[nodiscard]] std::uint64_t data_begin() const noexcept { return data_begin_; }
  [[nodiscard]] std::uint64_t data_bytes() const noexcept { return data_bytes_; }

  /// Bits of one element ("F32": 32, "F4": 4); nothing for an unknown dtype.
  [[nodiscard]] static std::optional<unsigned> dtype_bits(std::string_view dtype) noexcept;
  /// Bits of a tensor; nothing for an unknown dtype, and if the number does not fit 64 bits. Dims
  /// are multiplied from the left, as Python's reader does it: behind a 0 any dim may follow, but
  /// dims before the 0 must fit.
  [[nodiscard]] static std::optional<std::uint64_t> tensor_bits(
      std::string_view dtype, const std::vector<std::uint64_t>& shape) noexcept;

 private:
  std::vector<SafetensorsEntry> entries_;
  std::vector<std::uint32_t> by_name_;  // indices into entries_, ascending by name
  std::vector<std::pair<std::string, std::string>> metadata_;
  std::uint64_t data_begin_ = 0;
  std::uint64_t data_bytes_ = 0;
};

}  // namespace meshstage
