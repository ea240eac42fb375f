#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/transfer/kept.hpp>
#include <meshstage/core/transfer/pieces.hpp>

namespace meshstage::transfer {

/// Sends `image`, which is the whole image or its replica; its length tells which. From a replica
/// only a replica can be sent. Before a piece leaves, `wait_final(end)` blocks until the bytes up
/// to `end`, counted in the whole image, are final; an exception of it ends the transfer. Over
/// several connections several threads call `wait_final` at once. Throws what Transfer::wait
/// throws.
void send_image(const Link& link, std::span<const std::byte> image, const Shape& shape,
                const std::function<void(std::uint64_t)>& wait_final);
/// send_image() without the blocks that the receiver holds already. Of a replica that borrows,
/// every block is sent.
void send_image(const Link& link, std::span<const std::byte> image, const Shape& shape,
                const std::function<void(std::uint64_t)>& wait_final, const Offered& offered);

/// Receives all pieces of an image that this rank does not want any more, into scratch memory of
/// one piece. `masked`: as Holding::masked.
void drain_image(const Link& link, const Shape& shape, bool masked = false);

/// Receives into `image`, which must have the size of the image or replica that is sent, and proves
/// it. Checks the manifest's digest, every block against the trailer's table, and the trailer
/// itself; the identity must be `expected`. Returns the trailer's info. Throws CorruptData naming
/// rank, step and tensor, or what Transfer::wait throws.
[[nodiscard]] ImageInfo receive_image(const Link& link, std::span<std::byte> image,
                                      const Shape& shape, const Digest& manifest_digest,
                                      const ImageIdentity& expected);
/// receive_image() into a slot that may hold blocks of the image already. Also throws CorruptData
/// if the sender leaves out a block that the slot does not hold, or if a held block has changed.
/// After any error no later image may keep blocks of the slot.
[[nodiscard]] ImageInfo receive_image(const Link& link, std::span<std::byte> image,
                                      const Shape& shape, const Digest& manifest_digest,
                                      const ImageIdentity& expected, Holding& holding);

/// Receives a replica into its places in the memory of a whole image. Proves nothing, because the
/// borrowed bytes are still missing.
void receive_pieces(const Link& link, std::span<std::byte> image, const Shape& shape);

/// The proof of receive_image(), for an image that receive_pieces() and receive_ranges() made
/// whole.
[[nodiscard]] ImageInfo prove_image(int from, std::span<const std::byte> image,
                                    const Digest& manifest_digest, const ImageIdentity& expected);

}  // namespace meshstage::transfer
