#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/tree/value.hpp>

namespace meshstage::detail {

/// Appends a scalar to the stream of the values entry: FORMAT.md, "Values".
void encode_scalar(std::vector<std::byte>& stream, const Value& scalar);

/// Reads the stream back, scalar by scalar. Throws CorruptData.
class ValuesReader {
 public:
  /// `entry` is the whole values entry: its used length, then the stream.
  explicit ValuesReader(std::span<const std::byte> entry);
  Value next();
  /// Throws CorruptData unless the whole stream was read.
  void finish() const;

 private:
  std::span<const std::byte> take(std::uint64_t bytes);
  std::span<const std::byte> stream_;
  std::size_t at_ = 0;
};

}  // namespace meshstage::detail
