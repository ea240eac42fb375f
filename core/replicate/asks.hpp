#pragma once
#include <deque>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/replicate/exchange.hpp>

namespace meshstage::replicate {

/// The images that this rank has asked other ranks to send, with the agreed shapes, until they
/// come. A stream without an ask is refused.
///
/// An ask ends with its round. A sender streams the images of one owner in the order of their
/// steps, so a stream ends all older asks for that sender and owner. A sender has at most two steps
/// whose stream may still begin: the one that is offered, and one before it that failed. So the
/// third ask ends the first, whose step may have failed unsent.
/// Threads: the loop's.
class Asks {
 public:
  using Shape = transfer::Shape;

  void add(int from, int owner, exchange::Content content, ImageId id, const Shape& shape);
  /// Called when a stream begins. Returns the agreed shape, once; nothing if there is no such ask.
  [[nodiscard]] std::optional<Shape> take(int from, int owner, exchange::Content content,
                                          ImageId id);
  void clear() { asks_.clear(); }
  [[nodiscard]] std::size_t size() const;

 private:
  std::map<std::tuple<int, int, exchange::Content>, std::deque<std::pair<ImageId, Shape>>> asks_;
};

}  // namespace meshstage::replicate
