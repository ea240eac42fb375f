#include <meshstage/core/replicate/exchange.hpp>

#include <algorithm>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/protocol/codec.hpp>

namespace meshstage::exchange {

static_assert(protocol::kMostImageBytes == transfer::kMostBytes);

StreamStart stream_start(int owner, ImageId id, const Shape& shape, Content content, bool masked) {
  return {.owner = owner,
          .id = id,
          .content = content,
          .with_manifest = shape.with_manifest,
          .image_bytes = shape.image_bytes,
          .manifest_bytes = shape.manifest_bytes,
          .block_bytes = shape.block_bytes,
          .borrowed_bytes = shape.borrowed_bytes,
          .loans = shape.loans,
          .masked = masked};
}

Shape shape_of(const StreamStart& start) {
  return {.image_bytes = start.image_bytes,
          .manifest_bytes = start.manifest_bytes,
          .block_bytes = start.block_bytes,
          .with_manifest = start.with_manifest,
          .borrowed_bytes = start.borrowed_bytes,
          .loans = start.loans};
}

std::vector<std::string> names_for_a_want(std::vector<std::string> names) {
  // Leaves room for the bytes that the link itself puts around a message.
  constexpr std::size_t kMost = ControlLinks::kMaxMessageBytes - 4096;
  std::sort(names.begin(), names.end());
  std::size_t bytes = protocol::kWireHeaderBytes + protocol::kWantBytes;
  const auto beyond = std::find_if(names.begin(), names.end(), [&](const std::string& name) {
    bytes += protocol::kNamedStorageBytes + name.size();
    return bytes > kMost;
  });
  names.erase(beyond, names.end());
  return names;
}

}  // namespace meshstage::exchange
