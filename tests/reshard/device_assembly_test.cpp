// States whose tensors lie on devices, put together from the states of another number of ranks. On
// the fake driver, or on a real one.
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>

#include "tests/reshard/old_job.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/cuda.hpp"

using namespace meshstage;
using namespace meshstage::test;
using Catch::Matchers::Contains;

namespace {

constexpr int kErrorIllegalAddress = 700;

/// A view of `bytes` bytes on the device, all of them `fill`.
Tensor on_device(Cuda& cuda, DType dtype, Shape shape, Strides strides, std::int64_t elements,
                 std::int64_t offset = 0, unsigned char fill = 0xEE) {
  const auto bytes = elements * static_cast<std::int64_t>(size_of(dtype));
  return Tensor::on_storage(cuda.tensor(bytes, fill).storage(), dtype, std::move(shape),
                            std::move(strides), offset);
}

/// Four old ranks have eight rows of three columns, and a plain value each.
std::vector<Value> four_ranks(const Tensor& whole) {
  return old_job(4, [&](int rank) {
    return Dict{{"rows", dtensor::to_value(placed(whole, DeviceMesh::from_shape({4}),
                                                  {Placement::shard(0)}, rank))},
                {"count", Tensor::scalar<std::int64_t>(7)},
                {"host", counted({5})},
                {"step", 12}};
  });
}

/// The rows are in `local`, of rank 1 of 3.
Dict state_of(const Tensor& whole, const Tensor& local, const Tensor& count) {
  const DTensorSpec spec{DeviceMesh::from_shape({3}),
                         {Placement::shard(0)},
                         whole.dtype(),
                         whole.shape(),
                         contiguous_strides(whole.shape())};
  return Dict{{"rows", dtensor::to_value(DTensor::from_spec(local, spec, 1))},
              {"count", count},
              {"host", counted({5}, 100)},
              {"step", 0}};
}

/// Rank 1 of 3, planned out of four_ranks(): its rows are 3 to 5.
struct RankOfThree {
  explicit RankOfThree(Cuda& the_cuda, const Tensor& its_rows)
      : cuda(the_cuda),
        local(its_rows),
        assembly(Assembly::plan(four_ranks(whole), state, 1, 3, options())) {}
  static ReshardOptions options() {
    ReshardOptions options;
    options.readers = all_readers();
    return options;
  }
  [[nodiscard]] bool has_its_rows() {
    return same_bits(cuda.to_host(local), whole.narrow(0, 3, 3));
  }

  Cuda& cuda;
  Tensor whole = counted({8, 3}, 0.5F);
  Tensor local;
  Tensor count = on_device(cuda, DType::kI64, {}, {}, 1);
  Dict state = state_of(whole, local, count);
  Assembly assembly;
};

Tensor three_rows(Cuda& cuda) { return on_device(cuda, DType::kF32, {3, 3}, {3, 1}, 9); }

}  // namespace

TEST_CASE("reshard: tensors on a device get their boxes, whatever their strides") {
  Cuda cuda;
  // Of 24 elements on the device, those of no view stay as they are.
  const auto strides = GENERATE(Strides{3, 1}, Strides{1, 3}, Strides{8, 1}, Strides{8, 2});
  CAPTURE(strides);
  RankOfThree rank(cuda, on_device(cuda, DType::kF32, {3, 3}, strides, 24, 1));
  CHECK(rank.assembly.bytes() == 9 * sizeof(float) + sizeof(std::int64_t) + 5 * sizeof(float));
  rank.assembly.write();
  CHECK(rank.has_its_rows());
  CHECK(cuda.to_host(rank.count).item<std::int64_t>() == 7);
  CHECK(same_bits(rank.state.at("host").as<Tensor>(), counted({5})));
  CHECK(rank.state.at("step").as<std::int64_t>() == 12);
  std::vector<bool> written(24);
  for (std::int64_t i = 0; i < 9; ++i) {
    written[static_cast<std::size_t>(1 + i / 3 * strides[0] + i % 3 * strides[1])] = true;
  }
  const auto bytes = cuda.read(rank.local);
  for (std::size_t i = 0; i < 96; ++i) {
    if (!written[i / 4]) CHECK(bytes[i] == std::byte{0xEE});
  }
}

TEST_CASE("reshard: more than fits the host memory that waits for a device, in pieces") {
  Cuda cuda;
  constexpr std::int64_t kRows = 3, kColumns = 30'000'001;
  const auto old = old_job(1, [&](int) {
    Tensor bytes = Tensor::empty({kRows, kColumns}, DType::kU8);
    for (std::int64_t i = 0; i < bytes.numel(); ++i) {
      bytes.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(i % 251);
    }
    return Dict{{"small", Tensor::full<std::uint8_t>({5}, 1)},
                {"large", bytes},
                {"last", Tensor::full<std::uint8_t>({5}, 2)}};
  });
  const bool transposed = GENERATE(false, true);
  const Tensor large =
      on_device(cuda, DType::kU8, {kRows, kColumns},
                transposed ? Strides{1, kRows} : Strides{kColumns, 1}, kRows * kColumns);
  Dict state{{"small", cuda.tensor(5)}, {"large", large}, {"last", cuda.tensor(5)}};
  assemble(old, state, 0, 1);
  CHECK(same_bits(cuda.to_host(large), old.front().at("large").as<Tensor>()));
  CHECK(cuda.read(state.at("small").as<Tensor>()) == std::vector(5, std::byte{1}));
  CHECK(cuda.read(state.at("last").as<Tensor>()) == std::vector(5, std::byte{2}));
}

TEST_CASE("reshard: parts that are no run of the target, and holes between its elements") {
  Cuda cuda;
  constexpr std::int64_t kRows = 20, kColumns = 31;
  const Tensor whole = counted({kRows, kColumns});
  // Cut along the last dimension, so that no part is one run of the target.
  const auto old = old_job(2, [&](int rank) {
    return Dict{{"w", dtensor::to_value(placed(whole, DeviceMesh::from_shape({2}),
                                               {Placement::shard(1)}, rank))}};
  });
  const bool with_holes = GENERATE(false, true);
  const std::int64_t step = with_holes ? 2 : 1;
  const Tensor target = on_device(cuda, DType::kF32, {kRows, kColumns}, {kColumns * step, step},
                                  kRows * kColumns * step);
  Dict state{{"w", target}};
  assemble(old, state, 0, 1);
  CHECK(same_bits(cuda.to_host(target), whole));
  const auto bytes = cuda.read(target);
  for (std::size_t i = 4; with_holes && i < bytes.size(); i += 8) {
    if (bytes[i] != std::byte{0xEE}) FAIL("a hole was written at byte " << i);
  }
}

TEST_CASE("reshard: a device is written behind what the trainer has issued on its stream") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Cuda cuda(seed);
    const StreamHandle stream = cuda.open_stream();
    RankOfThree rank(cuda, three_rows(cuda));
    cuda.set(rank.local, 255, stream);
    const TrainerStream where{Cuda::kDevice, stream};
    rank.assembly.write({&where, 1});
    CHECK(rank.has_its_rows());
    cuda.close_stream(stream);
  }
}

TEST_CASE("reshard: a stream that is being captured is refused, and nothing is written") {
  Cuda cuda;
  const StreamHandle stream = cuda.open_stream();
  RankOfThree rank(cuda, three_rows(cuda));
  const TrainerStream where{Cuda::kDevice, stream};
  cuda.begin_capture(stream);
  CHECK_THROWS_AS(rank.assembly.write({&where, 1}), InvalidState);
  CHECK(cuda.end_capture(stream));
  CHECK(rank.state.at("step").as<std::int64_t>() == 0);
  CHECK(cuda.read(rank.local) == std::vector(36, std::byte{0xEE}));
  cuda.close_stream(stream);
}

TEST_CASE("reshard: every call of the driver fails in turn, and the next write is whole") {
  Cuda cuda;
  if (Cuda::real()) return;
  std::size_t unusable = 0;
  for (std::uint64_t n = 1; n < 300; ++n) {
    INFO("call " << n);
    RankOfThree rank(cuda, three_rows(cuda));
    const auto before = Cuda::fake().calls(nullptr);
    Cuda::fake().fail_call(n, kErrorIllegalAddress);
    bool written = false;
    try {
      rank.assembly.write();
      written = true;
    } catch (const InvalidState& e) {
      CHECK_THAT(e.what(), Contains("cu"));
      CHECK(rank.state.at("step").as<std::int64_t>() == 0);
      unusable += std::string(e.what()).find("unusable") == std::string::npos ? 0 : 1;
    }
    Cuda::fake().fail_call(0, 0);
    const auto used = Cuda::fake().calls(nullptr) - before;
    if (!written) rank.assembly.write();
    REQUIRE(rank.has_its_rows());
    if (written && n > used) break;
  }
  CHECK(unusable > 1);
}
