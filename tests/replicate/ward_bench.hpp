// Rank 0 of 2, whose ward the test plays: the part `inbox` in a round.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/transfer/image.hpp>

#include "tests/replicate/part_images.hpp"
#include "tests/replicate/played_peers.hpp"

namespace meshstage::test {

inline constexpr int kWard = 1;

/// A tensor that stays beside those that change with each step.
inline TestImage image_of_ward(std::uint64_t step) {
  auto state = state_of(kWard, step);
  state.set("frozen", Tensor::arange<float>(9000));
  return make_image(Value(state), {.block_bytes = 4096},
                    {InProcessJob::kName, kWard, 2, {PartBench::kGeneration, step}});
}

inline ImageId id_of(const TestImage& image) { return image.info.identity.id; }

/// Rank 0 of 2, whose ward the test plays.
class WardBench : public PartBench {
 public:
  WardBench(InProcessJob& job, const CheckpointerOptions& options)
      : PartBench(options), peers(job, *this, {kWard}) {}
  explicit WardBench(InProcessJob& job) : WardBench(job, job.options(0)) {}

  void accept(const TestImage& image, int slot = 0) {
    const ImageIdentity& who = image.info.identity;
    in_loop([&] { inbox.accept({kWard, slot, who.id, who.base, sizes_of(image.info)}); });
  }
  /// accept(), and the slot is ready.
  protocol::ReplicaReady accepted(const TestImage& image, int slot = 0) {
    accept(image, slot);
    auto ready = next().as<protocol::ReplicaReady>();
    require(ready.ward == kWard && ready.id == id_of(image), "another replica is ready");
    return ready;
  }
  void expect(const TestImage& image, Digest digest) {
    in_loop([&] { inbox.expect({kWard, id_of(image), digest}); });
  }
  void expect(const TestImage& image) { expect(image, image.info.image_digest); }
  void abort(ImageId id) {
    in_loop([&] { inbox.abort({id}); });
  }
  protocol::StreamStart start_of(const TestImage& image, const protocol::ReplicaReady& ready) {
    return exchange::stream_start(kWard, id_of(image),
                                  engine.shape_of(sizes_of(image.info), ready.need_manifest, true),
                                  exchange::Content::kImage, !ready.held.empty());
  }
  void begin_stream(const protocol::StreamStart& start) {
    in_loop([&] { inbox.stream(kWard, start); });
  }
  /// Sends the pieces of a stream that has begun; blocks that the slot holds stay. Returns their
  /// bytes.
  std::uint64_t send(const TestImage& image, const protocol::StreamStart& start,
                     const std::vector<Digest>& held = {}) {
    std::uint64_t stayed = 0;
    const auto data = image.bytes().subspan(image.info.manifest_bytes);
    transfer::send_image(peers.link(kWard), image.bytes(), exchange::shape_of(start),
                         [](std::uint64_t) {},
                         {held,
                          [&](std::size_t block) -> std::optional<Digest> {
                            return digest_block(data.subspan(block * 4096, 4096));
                          },
                          [&](std::uint64_t bytes) { stayed += bytes; }});
    return stayed;
  }
  /// Has the whole replica brought and sealed; returns the bytes that stayed.
  std::uint64_t bring(const TestImage& image, int slot) {
    const auto ready = accepted(image, slot);
    expect(image);
    const auto start = start_of(image, ready);
    begin_stream(start);
    const auto stayed = send(image, start, ready.held);
    require(next().as<protocol::ReplicaSealed>().id == id_of(image), "another replica was sealed");
    return stayed;
  }
  /// The next event is the end of a replica that was not sealed.
  std::string why_failed(const TestImage& image) {
    const auto failed = next().as<protocol::ReplicaFailed>();
    require(failed.ward == kWard && failed.id == id_of(image), "another replica failed");
    return failed.why;
  }

  PlayedPeers peers;
};

}  // namespace meshstage::test
