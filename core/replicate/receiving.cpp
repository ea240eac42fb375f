#include <meshstage/core/replicate/receiving.hpp>

#include <exception>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/transfer/image.hpp>
#include <meshstage/core/transfer/ranges.hpp>

namespace meshstage::replicate {
namespace {

ImageInfo receive_now(Engine& engine, const Arriving& stream) {
  const auto& start = stream.start;
  const auto group = engine.group_to(stream.from);
  const auto link = engine.link_to(*group, stream.from, start, Point::kChunkReceived);
  if (start.content == exchange::Content::kLent) {
    transfer::receive_ranges(link, stream.image, stream.ranges, start.block_bytes);
    return {};
  }
  if (!stream.prove) {
    transfer::receive_pieces(link, stream.image, exchange::shape_of(start));
    return {};
  }
  transfer::Holding nothing;
  transfer::Holding& holding = stream.holding ? *stream.holding : nothing;
  holding.masked = start.masked;
  return transfer::receive_image(link, stream.image, exchange::shape_of(start),
                                 stream.manifest_digest, stream.identity, holding);
}

}  // namespace

void receive_stream(Engine& engine, const TaskScope::Ticket& ticket, const Arriving& stream,
                    const Arrived& arrived, const NotArrived& failed) {
  try {
    const ImageInfo info = receive_now(engine, stream);
    engine.to_loop(ticket, [arrived, info] { arrived(info); });
  } catch (const PeerLost& e) {
    engine.lost_in_transfer(ticket, stream.from, e);
  } catch (const PeerSilent& e) {
    engine.lost_in_transfer(ticket, stream.from, e.kind(),
                            std::string("sent no piece of its image: ") + e.what());
  } catch (const Error& e) {
    engine.to_loop(ticket,
                   [failed, kind = e.kind(), why = std::string(e.what())] { failed(kind, why); });
  } catch (...) {  // pieces may be left on the connection, so no stream can follow this one
    engine.loop.fail(std::current_exception());
  }
}

void drain_stream(Engine& engine, const TaskScope::Ticket& ticket, int from,
                  const exchange::StreamStart& start) {
  try {
    const auto group = engine.group_to(from);
    transfer::drain_image(engine.link_to(*group, from, start, Point::kChunkReceived),
                          exchange::shape_of(start), start.masked);
  } catch (const PeerLost& e) {
    engine.lost_in_transfer(ticket, from, e);
  } catch (const Error& e) {
    engine.report.info("an unwanted image of rank " + std::to_string(from) + " ended: " + e.what());
  }
}

}  // namespace meshstage::replicate
