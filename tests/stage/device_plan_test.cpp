// Images of tensors on devices: where everything lies, what arrives, behind what, and who keeps
// what. On the fake driver, or on a real one.
#include <algorithm>
#include <cstring>
#include <thread>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/device_copies.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

#include "tests/stage/device_images.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/rank_errors.hpp"

using namespace meshstage;
using test::Cuda;

namespace {

using device_images::all_are;
using device_images::bytes_of;
using device_images::Image;
using device_images::kSmallBlocks;
using device_images::pattern;
using device_images::tensor;

constexpr std::uint64_t kSeeds = 50;

}  // namespace

TEST_CASE("device plan: the CPU's tensors come first, then whole blocks for each device") {
  Cuda cuda;
  const Device second{DeviceType::kCuda, 1};
  const bool two = !Cuda::real();
  Dict state{{"d0", cuda.tensor(10'000, 1)},
             {"h", Tensor::arange<float>(100)},
             {"d0 small", cuda.tensor(8, 2)},
             {"few", cuda.tensor(64, 4, 0, two ? second : Cuda::kDevice)},
             {"h2", Tensor::arange<float>(100)}};
  const auto plan = StagingPlan::compile(state, nullptr, kSmallBlocks);
  const auto& layout = plan.layout();
  const auto offset = [&](std::string_view name) {
    for (const auto& s : layout.segments) {
      if (s.name == name) return s.offset - layout.data_begin;
    }
    throw std::runtime_error("no segment");
  };
  CHECK(offset("h") == 0);
  CHECK(offset("h2") == 448);
  CHECK(offset("d0") == 4096);
  CHECK(offset("d0 small") == 4096 + 10'048);
  // A device that fills no block begins behind one that does; nothing is spent on its end.
  if (two) CHECK(offset("few") == 4 * 4096);
  if (two) CHECK(layout.values_begin - layout.data_begin == 4 * 4096 + 64);
  CHECK(plan.layout().block_bytes == 4096);
  // Nothing is rounded where no device fills a block.
  const auto large = StagingPlan::compile(state);
  CHECK(large.layout().values_begin - large.layout().data_begin == 448 + 448 + 10'048 + 64 + 64);
  // A grown structure is laid out by device, too.
  state.set("h3", Tensor::arange<float>(100));
  const auto grown = StagingPlan::compile(state, &plan, kSmallBlocks);
  CHECK(grown.layout().segments[2].name == "h3");
}

TEST_CASE("device plan: an image of tensors of a device and of the CPU is whole and sound") {
  Cuda cuda(GENERATE(0U, 1U));
  const bool pinned = GENERATE(true, false);
  const bool fused = GENERATE(true, false);
  CAPTURE(pinned, fused);
  // Small, odd-aligned, empty, and more than a batch and a largest copy together.
  const std::vector<std::pair<std::int64_t, std::size_t>> sizes{
      {1, 0}, {0, 0}, {4096, 0}, {300'000, 7}, {300'000, 0}, {(70 << 20) + 5, 0}, {33 << 20, 0}};
  List tensors;
  std::vector<std::vector<std::byte>> bytes;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto t = cuda.tensor(sizes[i].first, 0, sizes[i].second);
    bytes.push_back(pattern(t.storage().nbytes(), static_cast<unsigned>(i)));
    cuda.write(t, bytes.back());
    tensors.push_back(t);
  }
  const Dict state{{"device", tensors},
                   {"view", tensors[2].as<Tensor>().narrow(0, 10, 20)},
                   {"host", Tensor::arange<float>(1000)},
                   {"step", 7}};
  const auto plan = StagingPlan::compile(state);
  const auto source = plan.capture(state);
  REQUIRE(source);
  Crew crew("copy", 3);
  const CopyOptions how{.crew = pinned == fused ? &crew : nullptr};
  Image image(plan, pinned);
  image.make(*source, how, fused);
  const auto decoded = image.decoded();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    INFO(i);
    const auto& got = decoded.at("device").as<List>()[i].as<Tensor>();
    const auto found = got.storage().bytes();
    CHECK(got.device().is_cpu());
    CHECK(std::equal(found.begin(), found.end(), bytes[i].begin(), bytes[i].end()));
  }
  CHECK(same_bits(tensor(decoded, "host"), tensor(state, "host")));
  CHECK(tensor(decoded, "view").storage() ==
        decoded.at("device").as<List>()[2].as<Tensor>().storage());
  CHECK(decoded.at("step").as<std::int64_t>() == 7);
}

TEST_CASE("device plan: what lies below the watermark is final, in any order of the device") {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    const auto trainer = cuda.open_stream();
    // Batches: 3 MiB beside what the kernel copies; a batch's copies have no order among them.
    const Dict state{{"small", cuda.tensor(100'000, 1)},
                     {"large", cuda.tensor(3 << 20, 1)},
                     {"host", Tensor::full<std::uint8_t>({100'000}, 7)},
                     {"odd", cuda.tensor(300'000, 1, 3)},
                     {"large2", cuda.tensor(1 << 20, 1)}};
    for (const char* key : {"small", "large", "odd", "large2"})
      cuda.set(tensor(state, key), 7, trainer);
    const auto plan =
        StagingPlan::compile(state, nullptr, {.block_bytes = std::uint64_t{64} << 10U});
    const std::vector<TrainerStream> streams{{Cuda::kDevice, trainer}};
    const auto source = plan.capture(state, streams);
    Image image(plan);
    std::memset(image.bytes().data(), 0, image.bytes().size());
    std::string wrong;
    std::thread reader([&] {
      std::uint64_t at = plan.layout().data_begin;
      while (at < plan.layout().trailer_begin) {
        const auto until = image.progress.wait(at + 1);
        for (const auto& s : plan.layout().segments) {
          const auto begin = std::max(at, s.offset), end = std::min(until, s.offset + s.bytes);
          if (begin >= end) continue;
          if (!all_are(image.bytes().subspan(begin, end - begin), 7)) wrong += s.name + " ";
        }
        at = until;
      }
    });
    Crew crew("copy", 2);
    image.make(*source, {.crew = &crew}, seed % 3 != 0);
    reader.join();
    REQUIRE(wrong == "");
    cuda.synchronize(trainer);
    cuda.close_stream(trainer);
  }
}

TEST_CASE("device plan: the watermark stops before what the device has not copied") {
  Cuda cuda;
  if (Cuda::real()) return;
  const Dict state{{"device", cuda.tensor(1 << 20, 1)}, {"host", Tensor::arange<float>(1'000'000)}};
  const auto plan = StagingPlan::compile(state, nullptr, kSmallBlocks);
  const auto source = plan.capture(state);
  Image image(plan);
  detail::DeviceStreams streams;
  Cuda::fake().hold(true);
  const auto issued = plan.issue(*source, image.bytes(), streams, image.memory());
  CHECK_FALSE(issued->done());
  std::thread copying([&] { image.make(*source, {.devices = issued.get()}, true); });
  // Parts of a MiB: the fourth has bytes of both.
  const auto host_parts = plan.layout().data_begin + (std::uint64_t{3} << 20U);
  CHECK(image.progress.wait(host_parts) == host_parts);
  CHECK_FALSE(issued->done());
  Cuda::fake().hold(false);
  copying.join();
  CHECK(image.progress.bytes() == plan.layout().image_bytes);
  CHECK(issued->done());
  CHECK(all_are(bytes_of(image.decoded(), "device"), 1));
}

TEST_CASE("device plan: it comes behind the trainer's stream, and the trainer behind it") {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    const auto trainer = cuda.open_stream();
    const std::vector<TrainerStream> streams{{Cuda::kDevice, trainer}};
    const Dict state{{"large", cuda.tensor(600'000, 1)}, {"small", cuda.tensor(64, 1)}};
    const auto plan = StagingPlan::compile(state, nullptr, kSmallBlocks);
    detail::DeviceStreams ours;
    Image image(plan);
    for (unsigned char step = 2; step < 5; ++step) {
      for (const char* key : {"large", "small"}) cuda.set(tensor(state, key), step, trainer);
      const auto source = plan.capture(state, streams);
      const auto issued = plan.issue(*source, image.bytes(), ours, image.memory());
      REQUIRE(issued->digests(0));  // the device reads the source for its digests, too
      cuda.runtime().hold(streams[0], issued->staged(Cuda::kDevice));
      for (const char* key : {"large", "small"}) cuda.set(tensor(state, key), 99, trainer);
      if (seed % 3 == 0) cuda.synchronize(trainer);
      image.progress.reset();
      image.make(*source, {.devices = issued.get()}, seed % 2 == 0);
      const auto decoded = image.decoded();
      REQUIRE(all_are(bytes_of(decoded, "large"), step));
      REQUIRE(all_are(bytes_of(decoded, "small"), step));
    }
    cuda.synchronize(trainer);
    cuda.close_stream(trainer);
  }
}

TEST_CASE("device plan: both ends stay until the device is done, also where copying was given up") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto device_before = Cuda::fake().device_bytes();
  const auto host_before = Cuda::fake().registered_bytes();
  Dict state{{"a", cuda.tensor(600'000, 3)}, {"b", cuda.tensor(10, 3)}};
  const auto plan = StagingPlan::compile(state);
  auto source = std::make_shared<const StagingSource>(*plan.capture(state));
  {
    Image image(plan);
    detail::DeviceStreams streams;
    Cuda::fake().hold(true);
    const auto issued = plan.issue(*source, image.bytes(), streams, image.both_ends(source));
    image.progress.fail(std::make_exception_ptr(Cancelled("given up")));
    plan.write_manifest(image.bytes());
    CHECK_THROWS_AS(
        plan.copy(*source, image.bytes(), image.progress, CopyOptions{.devices = issued.get()}),
        Cancelled);
    source.reset();
    state = Dict();
  }
  CHECK(Cuda::fake().device_bytes() == device_before + 600'010);
  CHECK(Cuda::fake().registered_bytes() > host_before);
  Cuda::fake().hold(false);
  cuda.wait_until_nothing_is_kept();
  CHECK(Cuda::fake().device_bytes() == device_before);
  CHECK(Cuda::fake().registered_bytes() <= host_before);
}

TEST_CASE("device plan: a copy that issues by itself leaves nothing under way, however it ends") {
  Cuda cuda;
  if (Cuda::real()) return;
  const Dict state{{"a", cuda.tensor(600'000, 3)}, {"b", cuda.tensor(10, 3)}};
  const auto plan = StagingPlan::compile(state);
  const auto source = plan.capture(state);
  Image image(plan);
  plan.copy(*source, image.bytes(), image.progress);
  const auto before = Cuda::fake().pending();
  image.progress.reset();
  image.progress.fail(std::make_exception_ptr(Cancelled("given up")));
  CHECK_THROWS_AS(plan.copy(*source, image.bytes(), image.progress), Cancelled);
  CHECK(Cuda::fake().pending() <= before);
}

TEST_CASE("device plan: a stream that is being captured is refused before anything is issued") {
  Cuda cuda;
  const auto trainer = cuda.open_stream();
  const std::vector<TrainerStream> streams{{Cuda::kDevice, trainer}};
  const Dict state{{"a", cuda.tensor(100, 3)}};
  const auto plan = StagingPlan::compile(state);
  cuda.begin_capture(trainer);
  const auto calls = Cuda::real() ? 0 : Cuda::fake().calls("cuEventRecord");
  CHECK_THROWS_WITH(plan.capture(state, streams), contains_text("captured"));
  CHECK(plan.matches(state));
  if (!Cuda::real()) CHECK(Cuda::fake().calls("cuEventRecord") == calls);
  CHECK(cuda.end_capture(trainer));
  CHECK(plan.capture(state, streams));
  cuda.close_stream(trainer);
}

TEST_CASE("device plan: other tensors of a device match; of another device or of none do not") {
  Cuda cuda;
  const auto of = [](const Tensor& t) { return Dict{{"a", List{t}}}; };
  const auto first = cuda.tensor(100, 3);
  const auto plan = StagingPlan::compile(of(first));
  CHECK(plan.matches(of(cuda.tensor(100, 4))));
  CHECK(plan.matches(of(first.narrow(0, 0, 100))));
  CHECK_FALSE(plan.matches(of(Tensor::zeros({100}, DType::kU8))));
  if (!Cuda::real()) CHECK_FALSE(plan.matches(of(cuda.tensor(100, 3, 0, {DeviceType::kCuda, 1}))));
  // Said to be on the device, but host memory.
  std::vector<std::byte> host(100);
  const auto false_one = Tensor::on_storage(
      Storage::wrap(host.data(), 100, nullptr, {.external = true}, Cuda::kDevice), DType::kU8,
      {100});
  CHECK_FALSE(plan.matches(of(false_one)));
  try {
    static_cast<void>(StagingPlan::compile(of(false_one), &plan));
    FAIL("host memory was planned as a device's");
  } catch (const InvalidArgument& e) {
    CHECK(e.path() == "a.0");
    CHECK_THAT(e.what(), contains_text("cuda:0"));
  }
}

TEST_CASE("device plan: every call of the driver fails in turn, and the next image is whole") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto trainer = cuda.open_stream();
  const std::vector<TrainerStream> streams{{Cuda::kDevice, trainer}};
  const Dict state{{"large", cuda.tensor(600'000, 1)}, {"small", cuda.tensor(64, 1)}};
  const auto plan = StagingPlan::compile(state, nullptr, kSmallBlocks);
  std::size_t failures = 0;
  for (std::uint64_t n = 1; n < 300; ++n) {
    INFO("call " << n);
    const auto value = static_cast<unsigned char>(2 + n % 50);
    Image image(plan);
    detail::DeviceStreams ours;
    for (const char* key : {"large", "small"}) cuda.set(tensor(state, key), value, trainer);
    const auto before = Cuda::fake().calls(nullptr);
    Cuda::fake().fail_call(n, 700);
    bool whole = false;
    const auto stage = [&] {
      const auto source = plan.capture(state, streams);
      test::require(source.has_value(), "the driver (cu) does not know the tensors");
      const auto issued = plan.issue(*source, image.bytes(), ours, image.memory());
      image.progress.reset();
      image.make(*source, {.devices = issued.get()}, true);
      const auto decoded = image.decoded();
      REQUIRE(all_are(bytes_of(decoded, "large"), value));
      REQUIRE(all_are(bytes_of(decoded, "small"), value));
    };
    try {
      stage();
      whole = true;
    } catch (const Error& e) {
      CHECK_THAT(e.what(), contains_text("cu"));
      ++failures;
    }
    Cuda::fake().fail_call(0, 0);
    const auto used = Cuda::fake().calls(nullptr) - before;
    stage();
    if (whole && n > used) break;
  }
  CHECK(failures > 8);
  cuda.close_stream(trainer);
}
