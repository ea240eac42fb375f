// Images restored into tensors on devices: what is there when the call returns, behind what, and
// what a failure leaves. On the fake driver, or on a real one.
#include <algorithm>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/image.hpp>

#include "tests/device/cuda_support.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;
using test::Cuda;

namespace {

constexpr std::uint64_t kSeeds = 50;
constexpr std::int64_t kLarge = 600'000, kSmall = 64, kHost = 1000;

// The image of a state of these values, as a rank would have staged it.
struct Staged {
  explicit Staged(unsigned char value, bool pinned = true) {
    const auto made = test::make_image(Dict{{"large", Tensor::full<std::uint8_t>({kLarge}, value)},
                                            {"small", Tensor::full<std::uint8_t>({kSmall}, value)},
                                            {"host", Tensor::full<std::uint8_t>({kHost}, value)},
                                            {"step", value}});
    memory = std::make_shared<test::HostPages>(made.bytes().size(), pinned);
    std::copy(made.bytes().begin(), made.bytes().end(), memory->data());
    image = memory->all().first(made.bytes().size());
  }
  std::shared_ptr<test::HostPages> memory;
  std::span<const std::byte> image;
};

Dict device_state(Cuda& cuda, unsigned char value = 0) {
  return {{"large", cuda.tensor(kLarge, value)},
          {"small", cuda.tensor(kSmall, value)},
          {"host", Tensor::full<std::uint8_t>({kHost}, value)},
          {"step", 0}};
}

const Tensor& tensor(const Dict& d, const char* key) { return d.at(key).as<Tensor>(); }

bool all_are(std::span<const std::byte> bytes, unsigned value) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [&](std::byte b) { return std::to_integer<unsigned>(b) == value; });
}

bool holds(Cuda& cuda, const Dict& state, unsigned value) {
  return all_are(cuda.read(tensor(state, "large")), value) &&
         all_are(cuda.read(tensor(state, "small")), value) &&
         all_are(tensor(state, "host").storage().bytes(), value) &&
         state.at("step").as<std::int64_t>() == value;
}

}  // namespace

TEST_CASE("device restore: an image comes into tensors of a device and of the CPU, in place") {
  Cuda cuda(GENERATE(0U, 1U));
  const Staged staged(7, GENERATE(true, false));
  auto state = device_state(cuda);
  const auto large = tensor(state, "large");
  CHECK_FALSE(compare_structure(staged.image, state));
  CHECK_NOTHROW(require_writable(state));
  restore_into(staged.image, state);
  CHECK(tensor(state, "large").identity() == large.identity());
  CHECK(large.device() == Cuda::kDevice);
  CHECK(holds(cuda, state, 7));
}

TEST_CASE("device restore: more than a batch, odd addresses, views and two devices") {
  Cuda cuda;
  const Device second{DeviceType::kCuda, Cuda::real() ? std::int16_t{0} : std::int16_t{1}};
  const auto bytes = test::counting((70U << 20U) + 5);
  const auto large = Tensor::zeros({static_cast<std::int64_t>(bytes.size())}, DType::kU8);
  std::copy(bytes.begin(), bytes.end(), large.storage().data());
  const auto odd = Tensor::full<std::uint8_t>({300'001}, 4);
  const auto far = Tensor::full<std::uint8_t>({5000}, 5);
  const auto made = test::make_image(
      Dict{{"large", large}, {"odd", odd}, {"view", odd.narrow(0, 5, 10)}, {"far", far}});
  const auto to = cuda.tensor(300'001, 0, 3);
  Dict state{{"large", cuda.tensor(static_cast<std::int64_t>(bytes.size()))},
             {"odd", to},
             {"view", to.narrow(0, 5, 10)},
             {"far", cuda.tensor(5000, 0, 0, second)}};
  const test::HostPages memory(made.bytes().size());
  std::copy(made.bytes().begin(), made.bytes().end(), memory.data());
  restore_into(memory.all().first(made.bytes().size()), state);
  CHECK(cuda.read(tensor(state, "large")) == bytes);
  CHECK(all_are(cuda.read(to), 4));
  CHECK(all_are(cuda.read(tensor(state, "far")), 5));
}

TEST_CASE("device restore: it comes behind the trainer's stream, and is there before the next") {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    const auto trainer = cuda.open_stream();
    const Staged staged(7);
    auto state = device_state(cuda);
    // Half a step that was under way when a peer died.
    for (const char* key : {"large", "small"}) cuda.set(tensor(state, key), 99, trainer);
    restore_into(staged.image, state,
                 {.streams = {{Cuda::kDevice, trainer}}, .keep = staged.memory});
    REQUIRE(holds(cuda, state, 7));
    cuda.synchronize(trainer);
    REQUIRE(holds(cuda, state, 7));
    cuda.close_stream(trainer);
  }
}

TEST_CASE("device restore: what is refused has touched nothing") {
  Cuda cuda;
  const auto trainer = cuda.open_stream();
  const Staged staged(7);
  auto state = device_state(cuda);
  SECTION("a stream that is being captured") {
    cuda.begin_capture(trainer);
    CHECK_THROWS_WITH(restore_into(staged.image, state, {.streams = {{Cuda::kDevice, trainer}}}),
                      contains_text("captured"));
    CHECK(cuda.end_capture(trainer));
  }
  SECTION("memory that the driver does not know") {
    std::vector<std::byte> host(kSmall);
    state.set("small", Tensor::on_storage(Storage::wrap(host.data(), host.size(), nullptr,
                                                        {.external = true}, Cuda::kDevice),
                                          DType::kU8, {kSmall}));
    try {
      restore_into(staged.image, state);
      FAIL("host memory was restored as a device's");
    } catch (const InvalidState& e) {
      CHECK(e.path() == "small");
      CHECK_THAT(e.what(), contains_text("cuda:0"));
    }
    state.set("small", cuda.tensor(kSmall));
  }
  SECTION("another structure") {
    state.set("small", cuda.tensor(kSmall + 1));
    CHECK_THROWS_AS(restore_into(staged.image, state), StructureMismatch);
    state.set("small", cuda.tensor(kSmall));
  }
  CHECK(holds(cuda, state, 0));
  cuda.close_stream(trainer);
}

TEST_CASE("device restore: a device that is not done by the deadline; both ends stay until it is") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto device_before = Cuda::fake().device_bytes();
  {
    auto staged = std::make_unique<Staged>(7);
    auto state = device_state(cuda);
    restore_into(staged->image, state);
    const auto registered = Cuda::fake().registered_bytes();
    Cuda::fake().hold(true);
    CHECK_THROWS_WITH(restore_into(staged->image, state,
                                   {.keep = staged->memory,
                                    .deadline = Deadline::after(std::chrono::milliseconds(20))}),
                      contains_text("unusable"));
    staged.reset();
    state = Dict();
    CHECK(Cuda::fake().device_bytes() == device_before + kLarge + kSmall);
    CHECK(Cuda::fake().registered_bytes() >= registered);
    Cuda::fake().hold(false);
  }
  cuda.wait_until_nothing_is_kept();
  CHECK(Cuda::fake().device_bytes() == device_before);
}

TEST_CASE("device restore: every call of the driver fails in turn, and the next one is whole") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto trainer = cuda.open_stream();
  std::size_t unusable = 0;
  for (std::uint64_t n = 1; n < 300; ++n) {
    INFO("call " << n);
    const bool kept = n % 2 == 0;
    const Staged staged(7);
    auto state = device_state(cuda);
    const RestoreOptions how{.streams = {{Cuda::kDevice, trainer}},
                             .keep = kept ? staged.memory : nullptr};
    const auto before = Cuda::fake().calls(nullptr);
    Cuda::fake().fail_call(n, 700);
    bool whole = false;
    try {
      restore_into(staged.image, state, how);
      whole = true;
    } catch (const InvalidState& e) {
      CHECK_THAT(e.what(), contains_text("cu"));
      unusable += std::string(e.what()).find("unusable") == std::string::npos ? 0 : 1;
    }
    Cuda::fake().fail_call(0, 0);
    const auto used = Cuda::fake().calls(nullptr) - before;
    if (whole) REQUIRE(holds(cuda, state, 7));
    restore_into(staged.image, state, how);
    REQUIRE(holds(cuda, state, 7));
    if (whole && n > used) break;
  }
  CHECK(unusable > 4);
  cuda.close_stream(trainer);
}
