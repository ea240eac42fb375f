#include <meshstage/core/replicate/sending.hpp>

#include <atomic>
#include <exception>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/transfer/image.hpp>
#include <meshstage/core/transfer/ranges.hpp>

namespace meshstage::replicate {
namespace {

void send_now(Engine& engine, const Outgoing& stream) {
  const auto group = engine.group_to(stream.to);
  auto start = stream.start;
  start.connections = static_cast<std::uint8_t>(
      stream.beside_trainer ? engine.connections_beside_trainer(*group, stream.to)
                            : group->connections(stream.to));
  const auto wait_final = [&](std::uint64_t until) {
    if (stream.wait_final) stream.wait_final(until);
  };
  const auto shape = exchange::shape_of(start);
  wait_final(shape.manifest_bytes);  // then the image has a slot, and copying has begun
  engine.say(stream.to, start);
  const auto link = engine.link_to(*group, stream.to, start, Point::kChunkSent);
  if (start.content == exchange::Content::kLent) {
    transfer::send_ranges(link, stream.image(), stream.ranges, start.block_bytes);
  } else {
    const auto stayed = [&engine](std::uint64_t bytes) {
      engine.gate.count([bytes](Stats& stats) {
        stats.replica_bytes_sent -= bytes;
        stats.replica_bytes_kept += bytes;
      });
    };
    transfer::send_image(link, stream.image(), shape, wait_final,
                         {stream.held, stream.digest, stayed});
  }
}

/// Throws Cancelled if the step never got a slot; no other error of the copy.
void wait_until_copied(StageJob& job, std::uint64_t until) {
  try {
    job.watermark.wait(until);
  } catch (...) {  // whatever ended the copying
    if (job.image.empty()) throw Cancelled("the step never got a slot");
  }
}

/// Nothing once the copy has failed.
std::optional<Digest> digest_of_copied(const StageJob& job, std::size_t block) {
  // The copy may have ended before that block; then threads may still write digests.
  if (job.watermark.failed()) return std::nullopt;
  return job.blocks.digest(block);
}

}  // namespace

void send_stream(Engine& engine, const TaskScope::Ticket& ticket, const Outgoing& stream) {
  const int to = stream.to;
  try {
    send_now(engine, stream);
  } catch (const PeerLost& e) {
    if (!stream.over_bridge) engine.lost_in_transfer(ticket, to, e);
  } catch (const PeerSilent& e) {
    engine.lost_in_transfer(ticket, to, e.kind(),
                            std::string("took no piece of an image: ") + e.what());
  } catch (const Error& e) {
    // The generation is broken, which is reported elsewhere, or the step never got a slot.
    engine.report.info("an image to rank " + std::to_string(to) + " was not sent: " + e.what());
  } catch (...) {  // the stream may have ended within a piece, so the generation ends
    engine.loop.fail(std::current_exception());
  }
}

Outgoing outgoing_step(const std::shared_ptr<StageJob>& job) {
  Outgoing stream;
  stream.beside_trainer = true;
  stream.digest = [job](std::size_t block) { return digest_of_copied(*job, block); };
  stream.image = [job] { return std::span<const std::byte>(job->image); };
  stream.wait_final = [job](std::uint64_t until) { wait_until_copied(*job, until); };
  return stream;
}

Outgoing outgoing_bytes(std::span<const std::byte> bytes, std::shared_ptr<const void> keep) {
  Outgoing stream;
  stream.image = [bytes] { return bytes; };
  stream.keep = std::move(keep);
  return stream;
}

std::function<void(std::uint64_t)> reading_ahead(Reads& reads, std::string path,
                                                 std::span<const std::byte> image) {
  const auto read = std::make_shared<std::atomic<std::uint64_t>>(0);
  return [from_disk = &reads, name = std::move(path), image, read](std::uint64_t until) {
    std::uint64_t from = read->load();
    while (from < until && !read->compare_exchange_weak(from, until)) {  // another thread reads it
    }
    if (from >= until) return;
    Reads::Reading reading(from_disk, name);
    reading.step(0, until - from);
    read_pages(image.subspan(from, until - from), reading);
  };
}

}  // namespace meshstage::replicate
