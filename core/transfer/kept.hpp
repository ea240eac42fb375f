#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/transfer/pieces.hpp>

/// Blocks that the receiver's slot holds already do not travel again. Two slots alternate, so a
/// slot holds the step before last. The sender reads blocks that have not changed since (frozen
/// weights, untouched embeddings), but does not send them.
///
/// The receiver sends a table of its slot: the digest of each block that this process received and
/// proved there. The sender leaves out a block only if its own block at the same place has the same
/// digest. The sender never concludes from its own slots what a receiver holds: then ranks would
/// seal replicas that were never there (tests/transfer/held_blocks.hpp has the runs). The receiver
/// builds the image's table of digests from its own table and compares it with the image's trailer,
/// which always travels.
///
/// With a table, the stream has a mask of 8 bytes in front of each kMaskGroup pieces. A mask has
/// one bit for each piece, the lowest for the first piece; a piece whose bit is set travels.
namespace meshstage::transfer {

inline constexpr std::size_t kMaskGroup = 8;
/// For each image the receiver reads one in so many of the blocks that stay and digests it again,
/// in turn. So a block that rots in memory fails a step, and does not stay for ever.
inline constexpr std::uint64_t kVerifyOneIn = 16;
/// A table of more blocks is not sent: it would not fit a control message.
inline constexpr std::size_t kMostHeldBlocks = std::size_t{1} << 19U;

/// The blocks that this process received into a slot and proved there. They are void once a write
/// to the slot begins, however that write ends.
struct HeldBlocks {
  ImageId id;  ///< The image that is sealed there.
  Digest manifest_digest{};
  std::uint64_t block_bytes = 0;
  std::uint64_t times_kept = 0;  ///< Images in a row of which blocks stayed.
  std::vector<Digest> blocks;    ///< digest_block() of each block that is whole data.
};

/// True if the sender leaves out a block that the receiver holds with digest `held`. `mine`: the
/// digest of the sender's own block, if it is known.
[[nodiscard]] inline bool stays(const Digest& held, const std::optional<Digest>& mine) {
  return mine && *mine == held;
}

/// The sender's side. Over several connections several threads call the functions at once.
struct Offered {
  std::span<const Digest>
      held;  ///< The receiver's table; empty: every piece travels, without masks.
  /// The digest of a block of the image, once it is final; nothing if it is not known.
  std::function<std::optional<Digest>(std::size_t block)> mine;
  /// Called with the bytes of pieces that stay, before the receiver can know it. Null: not called.
  std::function<void(std::uint64_t bytes)> stayed;
};

/// The receiver's side.
struct Holding {
  bool masked = false;  ///< The stream has masks.
  HeldBlocks held;      ///< Of the slot that receives; no blocks: nothing may stay.
  // Set by receive_image():
  std::vector<Digest> blocks;    ///< Held now; empty if the image did not come by blocks.
  std::uint64_t kept_bytes = 0;  ///< Of pieces that stayed.
};

}  // namespace meshstage::transfer
