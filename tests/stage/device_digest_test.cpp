// Digests of an image that devices make of their own memory: which they are, that they are right,
// and that a wrong copy is found out by them. On the fake driver, or on a real one.
#include <algorithm>
#include <cstring>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/device_copies.hpp>
#include <meshstage/core/stage/device_snapshot.hpp>

#include "tests/stage/device_images.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using device_images::all_are;
using device_images::bytes_of;
using device_images::Image;
using device_images::kSmallBlocks;
using device_images::pattern;
using device_images::tensor;
using test::Cuda;

namespace {

constexpr std::uint64_t kSeeds = 50;

// One letter for each block: d if a device digests it, h if the host does.
std::string who_digests(const StagingPlan& plan, const detail::DeviceCopies& issued) {
  std::string who;
  for (std::size_t i = 0; i < plan.block_digests().block_count(); ++i)
    who += issued.digests(i) ? 'd' : 'h';
  return who;
}

}  // namespace

TEST_CASE("device digests: a block is a device's if all its bytes are, and the digests are right") {
  Cuda cuda(GENERATE(0U, 1U));
  const bool snapshot = GENERATE(true, false);
  const bool pinned = GENERATE(true, false);
  const Dict state{{"host", Tensor::arange<float>(100)},
                   {"large", cuda.tensor(3 * 4096 + 100, 0)},
                   {"odd", cuda.tensor(3000, 0, 3)},
                   {"gap", cuda.tensor(4097, 0)},
                   {"more", cuda.tensor(2 * 4096, 0)}};
  for (const char* key : {"large", "odd", "gap", "more"}) {
    const auto& t = tensor(state, key);
    cuda.write(t, pattern(t.storage().nbytes(), static_cast<unsigned>(key[0])));
  }
  const auto plan = StagingPlan::compile(state, nullptr, kSmallBlocks);
  auto source = plan.capture(state);
  REQUIRE(source);
  detail::DeviceSnapshot copy(0, {});
  if (snapshot) REQUIRE(copy.take(*source, Deadline::after(std::chrono::seconds(20))));
  detail::DeviceStreams streams;
  Image image(plan, pinned);
  std::memset(image.bytes().data(), 0xEE, image.bytes().size());
  const auto issued = plan.issue(*source, image.bytes(), streams, image.memory());
  // The CPU's block; three of `large`; one with bytes of `odd`, whose address is not aligned; two
  // with the end of `gap`, zeros and `more`; one with the end of `more` and the values.
  CHECK(who_digests(plan, *issued) == "hdddhddh");
  const auto info = image.make(*source, {.devices = issued.get()}, true);
  CHECK(info == verify_image(image.bytes()));
  for (const char* key : {"large", "odd", "gap", "more"}) {
    const auto found = bytes_of(image.decoded(), key);
    const auto expected = pattern(found.size(), static_cast<unsigned>(key[0]));
    CHECK(std::equal(found.begin(), found.end(), expected.begin(), expected.end()));
  }
  // The host alone makes the same image.
  Image other(plan, pinned);
  CHECK(other.make(*source, {}, false).image_digest == info.image_digest);
}

TEST_CASE("device digests: where the tensors lie is looked up anew when they lie elsewhere") {
  Cuda cuda;
  const auto of = [&](unsigned char value, std::size_t offset) {
    return Dict{{"a", cuda.tensor(3 * 4096, value, offset)}};
  };
  const Dict aligned = of(1, 0), odd = of(2, 3), other = of(3, 0);
  const auto plan = StagingPlan::compile(aligned, nullptr, kSmallBlocks);
  detail::DeviceStreams streams;
  const auto stage = [&](const Dict& state, unsigned char value) {
    Image image(plan);
    const auto source = plan.capture(state);
    const auto issued = plan.issue(*source, image.bytes(), streams, image.memory());
    image.make(*source, {.devices = issued.get()}, true);
    CHECK(all_are(bytes_of(image.decoded(), "a"), value));
    return who_digests(plan, *issued);
  };
  CHECK(stage(aligned, 1) == "dddh");
  CHECK(stage(aligned, 1) == "dddh");
  CHECK(stage(odd, 2) == "hhhh");
  CHECK(stage(other, 3) == "dddh");
  CHECK(stage(aligned, 1) == "dddh");
}

TEST_CASE("device digests: a copy that does not arrive, or arrives wrong, does not verify") {
  Cuda cuda;
  if (Cuda::real()) return;
  const bool drop = GENERATE(true, false);
  const std::int64_t bytes = GENERATE(std::int64_t{64} << 10U, std::int64_t{1} << 20U);
  CAPTURE(drop, bytes);  // by the gather kernel, and by a copy
  const Dict state{{"a", cuda.tensor(bytes, 1)}};
  const auto plan = StagingPlan::compile(state, nullptr, kSmallBlocks);
  Image image(plan);
  std::memset(image.bytes().data(), 0, image.bytes().size());
  const auto make = [&] {
    const auto source = plan.capture(state);
    image.progress.reset();
    image.make(*source, {}, true);
  };
  Cuda::fake().damage_copy(1, drop);
  make();
  try {
    static_cast<void>(verify_image(image.bytes()));
    FAIL("an image that was not copied faithfully is called right");
  } catch (const CorruptData& e) {
    CHECK(e.path() == "a");
    CHECK_THAT(e.what(), contains_text("does not match its digest"));
  }
  make();
  CHECK(all_are(bytes_of(image.decoded(), "a"), 1));
}

TEST_CASE("device digests: nothing is made anew from the second time on") {
  Cuda cuda;
  if (Cuda::real()) return;
  const Dict state{{"a", cuda.tensor(1 << 20, 1)}, {"b", cuda.tensor(10'000, 2)}};
  const auto plan = StagingPlan::compile(state, nullptr, kSmallBlocks);
  detail::DeviceStreams streams;
  Image image(plan);
  const auto made = [] {
    std::uint64_t calls = 0;
    for (const auto* name : {"cuMemAlloc", "cuMemHostRegister", "cuEventCreate", "cuStreamCreate"})
      calls += Cuda::fake().calls(name);
    return calls;
  };
  std::uint64_t before = 0;
  for (int i = 0; i < 6; ++i) {
    if (i == 2) before = made();
    const auto source = plan.capture(state);
    const auto issued = plan.issue(*source, image.bytes(), streams, image.memory());
    image.progress.reset();
    image.make(*source, {.devices = issued.get()}, true);
    static_cast<void>(image.decoded());
  }
  CHECK(made() == before);
}

TEST_CASE("device digests: a kernel that fails fails the staging, and both ends stay until then") {
  Cuda cuda;
  if (Cuda::real()) return;
  const bool kernel = GENERATE(true, false);  // or the copy behind it
  cuda.wait_until_nothing_is_kept();
  const auto bytes = Cuda::fake().device_bytes();
  detail::DeviceStreams streams;
  std::weak_ptr<const void> kept;
  {
    const Dict state{{"a", cuda.tensor(1 << 20, 1)}};
    const auto plan = StagingPlan::compile(state, nullptr, kSmallBlocks);
    Image image(plan);
    auto source = std::make_shared<const StagingSource>(*plan.capture(state));
    Cuda::fake().hold(true);
    const char* const name = kernel ? "cuLaunchKernelEx" : "cuMemcpyAsync";
    Cuda::fake().fail_function(name, kernel ? 1 : 2,
                               700);  // the first copy is of the kernel's list
    CHECK_THROWS_WITH(plan.issue(*source, image.bytes(), streams, source), contains_text(name));
    kept = source;
  }
  CHECK_FALSE(kept.expired());  // the list for the kernel is still being copied
  Cuda::fake().hold(false);
  cuda.wait_until_nothing_is_kept();
  CHECK(kept.expired());
  streams = {};
  cuda.wait_until_nothing_is_kept();
  CHECK(Cuda::fake().device_bytes() == bytes);
}

TEST_CASE("device digests: what is digested stays until then, though its copies are done") {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    if (Cuda::real()) return;
    detail::DeviceStreams streams;
    {
      const Dict state{{"a", cuda.tensor(1 << 20, 1)}};
      const auto plan = StagingPlan::compile(state, nullptr, kSmallBlocks);
      Image image(plan);
      const auto source = std::make_shared<const StagingSource>(*plan.capture(state));
      Cuda::fake().hold(true);
      static_cast<void>(plan.issue(*source, image.bytes(), streams, image.both_ends(source)));
    }
    Cuda::fake().hold(false);
    cuda.wait_until_nothing_is_kept();
    streams = {};  // what is not digested yet is digested now
    cuda.wait_until_nothing_is_kept();
  }
}
