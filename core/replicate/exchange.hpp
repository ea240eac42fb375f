#pragma once
#include <string>
#include <vector>

#include <meshstage/core/protocol/messages.hpp>
#include <meshstage/core/transfer/pieces.hpp>

/// Between the protocol's messages about images and core/transfer, which knows no protocol.
namespace meshstage::exchange {

using protocol::Content;
using protocol::StreamStart;
using protocol::Want;
using transfer::Shape;

/// The message that goes before an image of that shape.
[[nodiscard]] StreamStart stream_start(int owner, ImageId id, const Shape& shape,
                                       Content content = Content::kImage);
/// What a StreamStart says of the pieces that follow it.
[[nodiscard]] Shape shape_of(const StreamStart& start);

/// Of these names as many as fit one Want, first in order: a borrower borrows no more from one
/// lender, and that lender expects no more.
[[nodiscard]] std::vector<std::string> names_for_a_want(std::vector<std::string> names);

}  // namespace meshstage::exchange
