#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/transfer/pieces.hpp>

namespace meshstage::transfer {

/// Sends `image`, which is the whole image or its replica (by its length; only a replica may travel
/// from one). Before a piece leaves, `wait_final(end)` blocks until the bytes up to `end`, counted
/// in the whole image, are final; what it throws ends the transfer. Throws what Transfer::wait
/// throws.
void send_image(const Link& link, std::span<const std::byte> image, const Shape& shape,
                const std::function<void(std::uint64_t)>& wait_final);

/// Takes all pieces of an image that nobody wants any more, into scratch memory of one piece.
void drain_image(const Link& link, const Shape& shape);

/// Receives into `image` (as long as what travels) and proves it: manifest digest, every block
/// against the trailer's table, the trailer itself; the identity must be `expected`. Returns what
/// the image says of itself. Throws CorruptData naming rank, step and tensor, or what
/// Transfer::wait throws.
[[nodiscard]] ImageInfo receive_image(const Link& link, std::span<std::byte> image,
                                      const Shape& shape, const Digest& manifest_digest,
                                      const ImageIdentity& expected);

/// Receives a replica to its places in the memory of a whole image, and proves nothing: what it
/// borrows is still to come.
void receive_pieces(const Link& link, std::span<std::byte> image, const Shape& shape);

/// The proof of receive_image() for an image that is whole now.
[[nodiscard]] ImageInfo prove_image(int from, std::span<const std::byte> image,
                                    const Digest& manifest_digest, const ImageIdentity& expected);

}  // namespace meshstage::transfer
