#include <cstdint>
#include <memory>

#include <meshstage/core/transfer/masks_impl.hpp>
#include <meshstage/core/transfer/moving_impl.hpp>
#include <meshstage/core/transfer/striped_impl.hpp>
#include <meshstage/core/transfer/window_impl.hpp>

namespace meshstage::transfer {
namespace {

void send_in_order(const Link& link, const Outgoing& outgoing) {
  Masks masks(outgoing.pieces, outgoing.stays != nullptr);
  const auto send_mask = [&](std::size_t group) {
    std::uint64_t mask = 0;
    for (auto i = masks.begin_of(group); i < masks.end_of(group); ++i) {
      if (!outgoing.stays(i)) mask |= std::uint64_t{1} << (i - masks.begin_of(group));
    }
    masks.set(group, mask);
    return link.group.send(link.peer, link.tag, masks.bytes(group));
  };
  const auto send_piece = [&](std::size_t i) -> std::unique_ptr<Transfer> {
    if (!masks.travels(i)) return nullptr;
    return link.group.send(link.peer, link.tag, outgoing.source(i, i % kWindow));
  };
  Window(link).run(
      masks.things(),
      [&](std::size_t i) {
        const auto [is_mask, number] = masks.thing(i);
        return is_mask ? send_mask(number) : send_piece(number);
      },
      [&](std::size_t i) {
        const auto [is_mask, number] = masks.thing(i);
        if (!is_mask && link.on_piece) link.on_piece(number + 1, outgoing.pieces);
      },
      [](std::size_t) { return std::size_t{0}; });
}

void receive_in_order(const Link& link, const Incoming& incoming) {
  Masks masks(incoming.pieces, incoming.stayed != nullptr);
  const auto has_come = [&](std::size_t i) {
    if (!masks.travels(i)) {
      incoming.stayed(i);
    } else if (incoming.came) {
      incoming.came(i, i % kWindow);
    }
    if (link.on_piece) link.on_piece(i + 1, incoming.pieces);
  };
  Window(link).run(
      masks.things(),
      [&](std::size_t i) -> std::unique_ptr<Transfer> {
        const auto [is_mask, number] = masks.thing(i);
        if (is_mask) return link.group.receive(link.peer, link.tag, masks.bytes(number));
        if (!masks.travels(number)) return nullptr;
        return link.group.receive(link.peer, link.tag, incoming.target(number, number % kWindow));
      },
      [&](std::size_t i) {
        const auto [is_mask, number] = masks.thing(i);
        if (!is_mask) has_come(number);
      },
      [&](std::size_t i) { return masks.needed_for(i); });
}

}  // namespace

std::size_t places(const Link& link) { return is_striped(link) ? striped_places(link) : kWindow; }

void send(const Link& link, const Outgoing& outgoing) {
  is_striped(link) ? send_striped(link, outgoing) : send_in_order(link, outgoing);
}

void receive(const Link& link, const Incoming& incoming) {
  is_striped(link) ? receive_striped(link, incoming) : receive_in_order(link, incoming);
}

}  // namespace meshstage::transfer
