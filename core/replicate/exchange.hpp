#pragma once
#include <string>
#include <vector>

#include <meshstage/core/protocol/messages.hpp>
#include <meshstage/core/transfer/pieces.hpp>

/// Translates between the protocol's messages about images and the shapes of core/transfer, which
/// knows no protocol.
/// Threads: any.
namespace meshstage::exchange {

using protocol::Content;
using protocol::StreamStart;
using protocol::Want;
using transfer::Shape;

/// The message that precedes an image of that shape.
[[nodiscard]] StreamStart stream_start(int owner, ImageId id, const Shape& shape,
                                       Content content = Content::kImage, bool masked = false);
/// The shape of the pieces that follow a StreamStart.
[[nodiscard]] Shape shape_of(const StreamStart& start);

/// The first of these names, as many as fit one Want. A borrower borrows no more from one lender,
/// and the lender expects no more.
[[nodiscard]] std::vector<std::string> names_for_a_want(std::vector<std::string> names);

}  // namespace meshstage::exchange
