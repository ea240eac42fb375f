// Tensors on devices, staged: what arrives, in which order, who keeps what, and what fails. On the
// fake driver, or on a real one.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <thread>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/device_snapshot.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>

#include "tests/stage/gate.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/cuda.hpp"

using namespace meshstage;
using test::Cuda;

namespace {

constexpr std::uint64_t kSeeds = 50;

StagerOptions pinned(Cuda& cuda) {
  StagerOptions options;
  options.pin_memory = true;
  options.pin_memory_min_bytes = 1;
  options.pinner = &cuda.runtime().pinner(Cuda::kDevice);
  return options;
}

const Tensor& tensor(const Value& v, const char* key) { return v.at(key).as<Tensor>(); }

// Every byte of a staged tensor has one value; which.
unsigned value_of(const Tensor& t) {
  const auto bytes = t.storage().bytes();
  if (std::any_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b != bytes[0]; }))
    return 1000;
  return std::to_integer<unsigned>(bytes[0]);
}

std::vector<std::byte> pattern(std::size_t bytes, unsigned first) {
  std::vector<std::byte> result(bytes);
  for (std::size_t i = 0; i < bytes; ++i) result[i] = static_cast<std::byte>((first + i) % 253);
  return result;
}

bool holds(const Tensor& staged, const std::vector<std::byte>& bytes) {
  const auto found = staged.storage().bytes();
  return staged.device().is_cpu() &&
         std::equal(found.begin(), found.end(), bytes.begin(), bytes.end());
}

}  // namespace

TEST_CASE("device stager: tensors of a device and of the CPU arrive on the CPU, whole") {
  Cuda cuda(GENERATE(0U, 1U));
  const bool pin = GENERATE(true, false);
  StateDictStager stager(pin ? pinned(cuda) : StagerOptions{});
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
  const Dict state{{"device", tensors}, {"host", Tensor::arange<float>(1000)}, {"step", 7}};
  for (const bool async : {false, true, false}) {
    const Value staged = async ? stager.stage_async(state).get() : stager.stage(state);
    const auto& list = staged.at("device").as<List>();
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      INFO(i);
      CHECK(holds(list[i].as<Tensor>(), bytes[i]));
    }
    CHECK(same_bits(tensor(staged, "host"), tensor(state, "host")));
    CHECK(staged.at("step").as<std::int64_t>() == 7);
  }
  CHECK(stager.plans() == 1);
  if (!Cuda::real() && pin) CHECK(Cuda::fake().calls("cuLaunchKernelEx") >= 3);
}

TEST_CASE("device stager: it comes behind the trainer's stream, and the trainer behind it") {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    const auto trainer = cuda.open_stream();
    auto options = pinned(cuda);
    options.streams = {{Cuda::kDevice, trainer}};
    const Dict state{{"large", cuda.tensor(600'000, 1)}, {"small", cuda.tensor(64, 1)}};
    {
      StateDictStager stager(std::move(options));
      for (unsigned char step = 2; step < 5; ++step) {
        for (const char* key : {"large", "small"}) cuda.set(tensor(state, key), step, trainer);
        auto work = stager.stage_async(state);
        stager.before_update({Cuda::kDevice, trainer});
        for (const char* key : {"large", "small"}) cuda.set(tensor(state, key), 99, trainer);
        if (seed % 3 == 0) cuda.synchronize(trainer);
        const auto staged = work.get();
        REQUIRE(value_of(tensor(staged, "large")) == step);
        REQUIRE(value_of(tensor(staged, "small")) == step);
      }
    }
    cuda.synchronize(trainer);
    cuda.close_stream(trainer);
  }
}

TEST_CASE("device stager: a trainer that does not wait tears what is staged, on the fake driver") {
  Cuda once;
  if (Cuda::real()) return;
  std::size_t torn = 0;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    const auto trainer = cuda.open_stream();
    const Dict state{{"a", cuda.tensor(600'000, 1)}};
    StateDictStager stager(pinned(cuda));
    Cuda::fake().hold(true);
    auto work = stager.stage_async(state);
    cuda.set(tensor(state, "a"), 99, trainer);
    Cuda::fake().hold(false);
    cuda.synchronize(trainer);
    torn += value_of(tensor(work.get(), "a")) == 1 ? 0 : 1;
    cuda.close_stream(trainer);
  }
  CHECK(torn > kSeeds / 4);
}

TEST_CASE("device stager: the call returns while the device has done nothing yet") {
  Cuda cuda;
  if (Cuda::real()) return;
  StateDictStager stager(pinned(cuda));
  const Dict state{{"a", cuda.tensor(600'000, 3)}, {"b", cuda.tensor(10, 3)}};
  static_cast<void>(stager.stage(state));
  Cuda::fake().hold(true);
  auto work = stager.stage_async(state);
  CHECK_FALSE(work.ready());
  CHECK(Cuda::fake().pending() > 0);
  Cuda::fake().hold(false);
  CHECK(value_of(tensor(work.get(), "a")) == 3);
}

TEST_CASE(
    "device stager: a source that is dropped, and a staging given up, last as long as copies") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto before = Cuda::fake().device_bytes();
  const bool give_up = GENERATE(true, false);
  auto stager = std::make_unique<StateDictStager>(pinned(cuda));
  Dict state{{"a", cuda.tensor(600'000, 3)}, {"b", cuda.tensor(10, 3)}};
  Cuda::fake().hold(true);
  auto work = stager->stage_async(state);
  state = Dict();
  if (give_up) {
    work = {};
    stager.reset();
  }
  CHECK(Cuda::fake().device_bytes() == before + 600'010);
  Cuda::fake().hold(false);
  if (!give_up) {
    const auto staged = work.get();
    CHECK(value_of(tensor(staged, "a")) == 3);
    CHECK(value_of(tensor(staged, "b")) == 3);
    stager.reset();
  }
  cuda.wait_until_nothing_is_kept();
  CHECK(Cuda::fake().device_bytes() == before);
}

TEST_CASE("device stager: a stream that is being captured is refused before anything is issued") {
  Cuda cuda;
  const auto trainer = cuda.open_stream();
  auto options = pinned(cuda);
  options.streams = {{Cuda::kDevice, trainer}};
  StateDictStager stager(std::move(options));
  const Dict state{{"a", cuda.tensor(100, 3)}};
  static_cast<void>(stager.stage(state));
  cuda.begin_capture(trainer);
  const auto copies = Cuda::real() ? 0 : Cuda::fake().calls("cuEventRecord");
  CHECK_THROWS_WITH(stager.stage(state), contains_text("captured"));
  CHECK_THROWS_AS(stager.stage_async(state), InvalidState);
  CHECK_THROWS_AS(stager.before_update({Cuda::kDevice, trainer}), InvalidState);
  if (!Cuda::real()) CHECK(Cuda::fake().calls("cuEventRecord") == copies);
  CHECK(cuda.end_capture(trainer));
  CHECK(value_of(tensor(stager.stage(state), "a")) == 3);
  cuda.close_stream(trainer);
}

TEST_CASE("device stager: memory that the driver does not know is refused with its path") {
  Cuda cuda;
  StateDictStager stager;
  std::vector<std::byte> host(16);
  const auto false_one = [&](Device device) {
    return Tensor::on_storage(Storage::wrap(host.data(), 16, nullptr, {.external = true}, device),
                              DType::kU8, {16});
  };
  for (const auto device : {Cuda::kDevice, Device{DeviceType::kCuda, 77}}) {
    try {
      static_cast<void>(
          stager.stage(Dict{{"near", cuda.tensor(4, 1)}, {"far", List{false_one(device)}}}));
      FAIL("host memory was staged as a device's");
    } catch (const InvalidArgument& e) {
      CHECK(e.path() == "far.0");
      CHECK_THAT(e.what(), contains_text(to_string(device)));
    }
  }
}

TEST_CASE("device stager: views of one memory share, on the device as on the CPU") {
  Cuda cuda;
  const auto whole = cuda.tensor(1000, 5);
  const auto inside = Tensor::on_storage(
      Storage::wrap(whole.storage().data() + 100, 50, std::make_shared<Tensor>(whole),
                    {.external = true}, Cuda::kDevice),
      DType::kU8, {50});
  StateDictStager stager(pinned(cuda));
  const auto staged =
      stager.stage(Dict{{"whole", whole}, {"inside", inside}, {"view", whole.narrow(0, 10, 20)}});
  CHECK(stager.cached_bytes() == 1000);
  CHECK(tensor(staged, "inside").storage() == tensor(staged, "whole").storage());
  CHECK(tensor(staged, "inside").storage_offset() == 100);
  CHECK(value_of(tensor(staged, "whole")) == 5);
}

TEST_CASE("device stager: every call of the driver fails in turn, and the next staging is whole") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto trainer = cuda.open_stream();
  const Dict state{{"large", cuda.tensor(600'000, 1)}, {"small", cuda.tensor(64, 1)}};
  std::size_t failures = 0;
  for (std::uint64_t n = 1; n < 200; ++n) {
    INFO("call " << n);
    auto options = pinned(cuda);
    options.streams = {{Cuda::kDevice, trainer}};
    options.warn = [](const std::string&) {};
    StateDictStager stager(std::move(options));
    const auto value = static_cast<unsigned char>(2 + n % 50);
    for (const char* key : {"large", "small"}) cuda.set(tensor(state, key), value, trainer);
    const auto before = Cuda::fake().calls(nullptr);
    Cuda::fake().fail_call(n, 700);
    bool whole = false;
    try {
      const auto staged = stager.stage(state);
      whole = true;
      REQUIRE(value_of(tensor(staged, "large")) == value);
      REQUIRE(value_of(tensor(staged, "small")) == value);
    } catch (const Error& e) {
      CHECK_THAT(e.what(), contains_text("cu"));
      ++failures;
    }
    Cuda::fake().fail_call(0, 0);
    const auto used = Cuda::fake().calls(nullptr) - before;
    const auto again = stager.stage(state);
    REQUIRE(value_of(tensor(again, "large")) == value);
    REQUIRE(value_of(tensor(again, "small")) == value);
    if (whole && n > used) break;
  }
  CHECK(failures > 8);
  cuda.close_stream(trainer);
}

TEST_CASE("device snapshot: it is what the tensors were, and the trainer comes behind it") {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    const auto trainer = cuda.open_stream();
    const std::vector<TrainerStream> streams{{Cuda::kDevice, trainer}};
    const Dict state{{"large", cuda.tensor(600'000, 1)}, {"odd", cuda.tensor(301, 1, 3)}};
    const auto plan = StagingPlan::compile(state);
    detail::DeviceSnapshot snapshot(0, {});
    for (unsigned char step = 2; step < 5; ++step) {
      for (const char* key : {"large", "odd"}) cuda.set(tensor(state, key), step, trainer);
      auto source = plan.capture(state, streams);
      REQUIRE(snapshot.take(*source, Deadline::after(std::chrono::seconds(20))));
      for (const auto& ready : source->ready) cuda.runtime().hold(streams[0], ready.event);
      for (const char* key : {"large", "odd"}) cuda.set(tensor(state, key), 99, trainer);
      std::vector<std::byte> image(plan.layout().image_bytes);
      Watermark progress;
      plan.copy(*source, image, progress);
      for (const auto& segment : plan.layout().segments) {
        const auto bytes = std::span(image).subspan(segment.offset, segment.bytes);
        REQUIRE(std::all_of(bytes.begin(), bytes.end(), [step](std::byte b) {
          return std::to_integer<unsigned char>(b) == step;
        }));
      }
      source.reset();
      cuda.wait_until_nothing_is_kept();
    }
    cuda.synchronize(trainer);
    cuda.close_stream(trainer);
  }
}

TEST_CASE("device snapshot: sources last as long as its copies, and it is not taken anew before") {
  Cuda cuda;
  if (Cuda::real()) return;
  const auto before = Cuda::fake().device_bytes();
  {
    auto state = std::make_unique<Dict>(Dict{{"a", cuda.tensor(600'000, 1)}});
    const auto plan = StagingPlan::compile(*state);
    detail::DeviceSnapshot snapshot(0, {});
    const auto in_time = [] { return Deadline::after(std::chrono::seconds(20)); };
    const auto soon = [] { return Deadline::after(std::chrono::milliseconds(5)); };
    auto source = plan.capture(*state);
    auto next = plan.capture(*state);
    REQUIRE(snapshot.reserve(source->storages, in_time()));
    const Dict other{{"a", cuda.tensor(600'000, 2)}};
    const auto bytes = Cuda::fake().device_bytes();
    Cuda::fake().hold(true);
    REQUIRE(snapshot.take(*source, in_time()));
    CHECK_THROWS_AS(snapshot.take(*next, soon()), Timeout);  // it has a source
    CHECK(next->storages[0] == tensor(*state, "a").storage());
    next.reset();
    state.reset();
    source.reset();
    CHECK(Cuda::fake().device_bytes() == bytes);
    auto third = plan.capture(other);
    CHECK_THROWS_AS(snapshot.take(*third, soon()), Timeout);  // the device still writes it
    Cuda::fake().hold(false);
    CHECK(snapshot.take(*third, in_time()));
    third.reset();
    cuda.wait_until_nothing_is_kept();
  }
  CHECK(Cuda::fake().device_bytes() == before);
}

TEST_CASE("device stager: with a snapshot the trainer goes on before anything reaches the host") {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Cuda cuda(seed);
    const auto trainer = cuda.open_stream();
    auto options = pinned(cuda);
    options.streams = {{Cuda::kDevice, trainer}};
    options.snapshot = Snapshot::kAuto;
    StateDictStager stager(std::move(options));
    const Dict state{{"large", cuda.tensor(600'000, 1)}, {"odd", cuda.tensor(301, 1, 3)}};
    const auto set_all = [&](unsigned char value) {
      for (const char* key : {"large", "odd"}) cuda.set(tensor(state, key), value, trainer);
    };
    for (unsigned char step = 2; step < 6; ++step) {
      set_all(step);
      auto work = stager.stage_async(state);
      stager.before_update({Cuda::kDevice, trainer});
      set_all(99);  // behind the snapshot alone
      const auto staged = work.get();
      REQUIRE(value_of(tensor(staged, "large")) == step);
      REQUIRE(value_of(tensor(staged, "odd")) == step);
    }
    // Without one: the call waits anyway.
    set_all(7);
    REQUIRE(value_of(tensor(stager.stage(state), "large")) == 7);
    stager.clear();
    set_all(8);
    REQUIRE(value_of(tensor(stager.stage_async(state).get(), "odd")) == 8);
    cuda.synchronize(trainer);
    cuda.close_stream(trainer);
  }
}

TEST_CASE("device stager: the update comes behind the snapshot, not behind copies to the host") {
  Cuda cuda;
  if (Cuda::real()) return;  // there copies go on by themselves
  const bool snapshot = GENERATE(false, true);
  const auto trainer = cuda.open_stream();
  // Holds the copies of the CPU's tensors back, and with them the thread that would wait for
  // devices.
  test::Gate gate(true);
  auto options = pinned(cuda);
  options.streams = {{Cuda::kDevice, trainer}};
  options.snapshot = snapshot ? Snapshot::kAuto : Snapshot::kOff;
  options.pace = &gate;
  StateDictStager stager(std::move(options));
  const Dict state{{"large", cuda.tensor(600'000, 1)}, {"cpu", Tensor::zeros({16}, DType::kU8)}};
  const auto staged = stager.stage_async(state).get();
  cuda.set(tensor(state, "large"), 2, trainer);
  gate.close();
  auto work = stager.stage_async(state);
  stager.before_update({Cuda::kDevice, trainer});
  cuda.synchronize(trainer);
  // The driver of the tests does only what somebody waits for.
  CHECK(value_of(tensor(staged, "large")) == (snapshot ? 1 : 2));
  gate.open();
  static_cast<void>(work.get());
  CHECK(value_of(tensor(staged, "large")) == 2);
  cuda.close_stream(trainer);
}

TEST_CASE("device stager: a snapshot's sources live until it is taken, its memory until clear()") {
  Cuda cuda;
  if (Cuda::real()) return;
  auto options = pinned(cuda);
  options.snapshot = Snapshot::kAuto;
  StateDictStager stager(std::move(options));
  auto state = std::make_unique<Dict>(Dict{{"a", cuda.tensor(600'000, 1)}});
  const auto before = Cuda::fake().device_bytes();
  auto staged = stager.stage_async(*state).get();
  const auto with_snapshot = Cuda::fake().device_bytes();
  CHECK(with_snapshot >= before + 600'000);
  state.reset();
  // The thread that fulfilled the promise may still be letting go of them.
  const auto long_enough = Deadline::after(std::chrono::seconds(20));
  while (Cuda::fake().device_bytes() > with_snapshot - 600'000 && !long_enough.expired()) {
    std::this_thread::yield();
  }
  CHECK(Cuda::fake().device_bytes() <= with_snapshot - 600'000);
  stager.clear();
  cuda.wait_until_nothing_is_kept();
  CHECK(Cuda::fake().device_bytes() < 600'000);
  CHECK(value_of(tensor(staged, "a")) == 1);
}

TEST_CASE("device stager: without memory for a snapshot it stages without, with one warning") {
  Cuda cuda;
  std::vector<std::string> warnings;
  auto options = pinned(cuda);
  options.snapshot = Snapshot::kAuto;
  options.snapshot_max_bytes = 1000;
  options.warn = [&](const std::string& text) { warnings.push_back(text); };
  StateDictStager stager(std::move(options));
  const Dict state{{"a", cuda.tensor(600'000, 1)}};
  for (unsigned char step = 2; step < 4; ++step) {
    cuda.set(tensor(state, "a"), step, kLegacyStream);
    CHECK(value_of(tensor(stager.stage_async(state).get(), "a")) == step);
  }
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], contains_text("no memory for a snapshot"));
}
