#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/transfer/pieces.hpp>

/// Blocks that the receiver's slot holds already do not travel again. Two slots alternate, so a
/// slot holds the step before last: what has not changed since (frozen weights, untouched
/// embeddings) costs the sender a read, and the network nothing.
///
/// The receiver says what its slot holds, from a table of its own: the digest of each block as this
/// process received and proved it there. The sender leaves a block out only where the digest of
/// what it has to send is the same, at the same place. It never concludes from its own slots what a
/// receiver has: that seals replicas that were never there (tests/transfer/held_blocks.hpp has the
/// runs). The receiver builds the image's table of digests from its own one and compares it with
/// the image's trailer, which travels always.
///
/// With a table, the stream has masks: in front of each kMaskGroup pieces one of 8 bytes, a bit for
/// each piece that travels, the first piece lowest.
namespace meshstage::transfer {

inline constexpr std::size_t kMaskGroup = 8;
/// Of the blocks that stay, one in so many is read and digested again by the receiver each time, in
/// turn: what rots in memory fails a step, and does not live for ever.
inline constexpr std::uint64_t kVerifyOneIn = 16;
/// A table of more blocks is not sent: it would not fit a control message.
inline constexpr std::size_t kMostHeldBlocks = std::size_t{1} << 19U;

/// What a slot holds, by what this process received there and proved. It ends when the slot is
/// begun to be written, whatever comes of that.
struct HeldBlocks {
  ImageId id;  ///< The image that is sealed there.
  Digest manifest_digest{};
  std::uint64_t block_bytes = 0;
  std::uint64_t times_kept = 0;  ///< Images in a row of which blocks stayed.
  std::vector<Digest> blocks;    ///< digest_block() of each block that is whole data.
};

/// Whether a block that the receiver says it holds need not be sent. `mine`: of the block that is
/// to be sent, if it is known.
[[nodiscard]] inline bool stays(const Digest& held, const std::optional<Digest>& mine) {
  return mine && *mine == held;
}

/// The sender's side. Over several connections several threads call the functions at once.
struct Offered {
  std::span<const Digest>
      held;  ///< The receiver's table; empty: every piece travels, without masks.
  /// The digest of a block of the image, once it is final; nothing if it is not known.
  std::function<std::optional<Digest>(std::size_t block)> mine;
  /// Told of bytes that stay before the receiver can know it. Null: nobody is.
  std::function<void(std::uint64_t bytes)> stayed;
};

/// The receiver's side.
struct Holding {
  bool masked = false;  ///< The stream has masks.
  HeldBlocks held;      ///< Of the slot that is received into; no blocks: nothing may stay.
  // Set by receive_image():
  std::vector<Digest> blocks;    ///< What is held now; empty where it does not travel by blocks.
  std::uint64_t kept_bytes = 0;  ///< Of pieces that stayed.
};

}  // namespace meshstage::transfer
