#pragma once
#include <deque>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/replicate/exchange.hpp>

namespace meshstage::replicate {

/// What this rank has asked other ranks to send, and in which shape, until it comes. A stream that
/// nobody asked for is refused.
///
/// An ask ends with its round. A sender streams the images of one owner in the order of their
/// steps, so all older asks of that sender and owner are over when a stream begins. And it has at
/// most two steps whose stream may still begin (the one that is offered, and one that failed before
/// it): so the third ask ends the first, though that one may have failed unsent. Threads: one.
class Asks {
 public:
  using Shape = transfer::Shape;

  void add(int from, int owner, exchange::Content content, ImageId id, const Shape& shape);
  /// The stream begins: the shape that was agreed, once; nothing if nobody asked.
  [[nodiscard]] std::optional<Shape> take(int from, int owner, exchange::Content content,
                                          ImageId id);
  void clear() { asks_.clear(); }
  [[nodiscard]] std::size_t size() const;

 private:
  std::map<std::tuple<int, int, exchange::Content>, std::deque<std::pair<ImageId, Shape>>> asks_;
};

}  // namespace meshstage::replicate
