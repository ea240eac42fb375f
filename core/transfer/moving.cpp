#include <cstdint>
#include <memory>

#include <meshstage/core/transfer/masks_impl.hpp>
#include <meshstage/core/transfer/moving_impl.hpp>
#include <meshstage/core/transfer/striped_impl.hpp>
#include <meshstage/core/transfer/window_impl.hpp>

namespace meshstage::transfer {
namespace {

void send_in_order(const Link& link, const PieceSource& source) {
  Masks masks(source.pieces, source.stays != nullptr);
  const auto send_mask = [&](std::size_t group) {
    std::uint64_t mask = 0;
    for (auto i = masks.begin_of(group); i < masks.end_of(group); ++i) {
      if (!source.stays(i)) mask |= std::uint64_t{1} << (i - masks.begin_of(group));
    }
    masks.set(group, mask);
    return link.group.send(link.peer, link.tag, masks.bytes(group));
  };
  const auto send_piece = [&](std::size_t i) -> std::unique_ptr<Transfer> {
    if (!masks.travels(i)) return nullptr;
    return link.group.send(link.peer, link.tag, source.bytes(i, i % kWindow));
  };
  Window(link).run(
      masks.things(),
      [&](std::size_t i) {
        const auto [is_mask, number] = masks.thing(i);
        return is_mask ? send_mask(number) : send_piece(number);
      },
      [&](std::size_t i) {
        const auto [is_mask, number] = masks.thing(i);
        if (!is_mask && link.on_piece) link.on_piece(number + 1, source.pieces);
      },
      [](std::size_t) { return std::size_t{0}; });
}

void receive_in_order(const Link& link, const PieceTarget& target) {
  Masks masks(target.pieces, target.stayed != nullptr);
  const auto has_come = [&](std::size_t i) {
    if (!masks.travels(i)) {
      target.stayed(i);
    } else if (target.came) {
      target.came(i, i % kWindow);
    }
    if (link.on_piece) link.on_piece(i + 1, target.pieces);
  };
  Window(link).run(
      masks.things(),
      [&](std::size_t i) -> std::unique_ptr<Transfer> {
        const auto [is_mask, number] = masks.thing(i);
        if (is_mask) return link.group.receive(link.peer, link.tag, masks.bytes(number));
        if (!masks.travels(number)) return nullptr;
        return link.group.receive(link.peer, link.tag, target.memory(number, number % kWindow));
      },
      [&](std::size_t i) {
        const auto [is_mask, number] = masks.thing(i);
        if (!is_mask) has_come(number);
      },
      [&](std::size_t i) { return masks.needed_for(i); });
}

}  // namespace

std::size_t places(const Link& link) { return is_striped(link) ? striped_places(link) : kWindow; }

void send(const Link& link, const PieceSource& source) {
  is_striped(link) ? send_striped(link, source) : send_in_order(link, source);
}

void receive(const Link& link, const PieceTarget& target) {
  is_striped(link) ? receive_striped(link, target) : receive_in_order(link, target);
}

}  // namespace meshstage::transfer
