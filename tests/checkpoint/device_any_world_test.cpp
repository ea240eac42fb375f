// Jobs whose tensors are on devices, and which come back with another number of ranks. On the fake
// driver, or on a real one.
#include <algorithm>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/changing_job.hpp"
#include "tests/support/cuda.hpp"
#include "tests/support/require.hpp"

namespace ms = meshstage;
using namespace meshstage::test;

namespace {

/// A copy of the tensor on the device, with the same strides.
ms::Tensor to_device(Cuda& cuda, const ms::Tensor& tensor) {
  const auto bytes = tensor.storage().bytes();
  const ms::Tensor memory = cuda.tensor(static_cast<std::int64_t>(bytes.size()));
  if (!bytes.empty()) cuda.write(memory, bytes);
  return ms::Tensor::on_storage(memory.storage(), tensor.dtype(), tensor.shape(), tensor.strides(),
                                tensor.storage_offset());
}

/// A rank's state at a step, on the device; "host" is on the CPU.
ms::Dict state_on(Cuda& cuda, int rank, int world, std::uint64_t step) {
  const auto row = ms::DeviceMesh::from_shape({world});
  const auto moved = [&](const ms::Value& value) -> ms::Value {
    const auto tensor = ms::dtensor::from_value(value);
    return ms::dtensor::to_value(
        ms::DTensor::from_spec(to_device(cuda, tensor.to_local()), tensor.spec(), rank));
  };
  const ms::Value tied = moved(on_mesh(whole({13, 7}, step, 1), row, "S(0)", rank));
  return ms::Dict{{"wte", tied},
                  {"head", tied},
                  {"columns", moved(on_mesh(whole({9, 12}, step, 2), row, "S(1)", rank, true))},
                  {"bias", to_device(cuda, whole({5}, step, 3))},
                  {"host", whole({30'000}, step, 4)},
                  {"step", static_cast<std::int64_t>(step)}};
}

/// Its tensors on the CPU.
ms::Dict on_host(Cuda& cuda, const ms::Dict& state) {
  ms::Dict result;
  for (const auto& [key, value] : state) {
    if (const auto* tensor = value.get_if<ms::Tensor>()) {
      result.set(key, tensor->device().is_cpu() ? *tensor : cuda.to_host(*tensor));
    } else if (value.get_if<ms::NodePtr>() != nullptr) {
      result.set(key, cuda.to_host(ms::dtensor::from_value(value).to_local()));
    } else {
      result.set(key, value);
    }
  }
  return result;
}

}  // namespace

TEST_CASE("device job: 4 ranks, then 3, 1 and 6: each has what slicing gives, on its device") {
  const auto seed = GENERATE(std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{2});
  Cuda cuda(seed);
  ChangingJob job;
  job.change = [](ms::CheckpointerOptions& o, int) { o.block_bytes = std::uint64_t{64} << 10U; };
  std::uint64_t step = 0;
  for (const int world : {4, 3, 1, 6}) {
    INFO(world << " ranks, step " << step);
    job.start(world, [&](ms::CheckpointerOptions o, int rank) {
      const auto stream = cuda.open_stream();
      o.streams = {{Cuda::kDevice, stream}};
      ms::Checkpointer ckpt(std::move(o));
      ms::Dict state = state_on(cuda, rank, world, step == 0 ? 0 : 777);
      // recover() comes behind what the trainer has issued.
      if (step > 0) cuda.set(state.at("bias").as<ms::Tensor>(), 255, stream);
      const auto recovered = ckpt.recover(state);
      require(recovered.step == step, "step " + std::to_string(recovered.step));
      const auto wrong =
          difference(on_host(cuda, state), on_host(cuda, state_on(cuda, rank, world, step)));
      require(wrong.empty(), wrong);
      auto staging = ckpt.stage(state_on(cuda, rank, world, step + 10), step + 10);
      require(staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20))) ==
                  ms::Outcome::kComplete,
              "the next step is not complete");
      ckpt.finish();
      cuda.close_stream(stream);
    });
    step += 10;
  }
}

TEST_CASE("device job: a device that fails while another number of ranks is taken ends no job") {
  Cuda cuda;
  if (Cuda::real()) return;
  ChangingJob job;
  job.start(4, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_on(cuda, rank, 4, 10);
    (void)ckpt.recover(state);
    auto staging = ckpt.stage(state, 10);
    require(staging.outcome().get(ms::Deadline::after(std::chrono::seconds(20))) ==
                ms::Outcome::kComplete,
            "the step is not complete");
    ckpt.finish();
  });
  std::vector<std::string> said(3);
  job.start(3, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_on(cuda, rank, 3, 777);
    if (rank == 0) Cuda::fake().fail_function("cuMemcpyAsync", 1, 700);
    try {
      (void)ckpt.recover(state);
      said[static_cast<std::size_t>(rank)] = "recovered";
    } catch (const ms::RejoinNeeded&) {
      said[static_cast<std::size_t>(rank)] = "rejoin";
    } catch (const ms::InvalidState&) {
      said[static_cast<std::size_t>(rank)] = "device";
    }
    if (said[static_cast<std::size_t>(rank)] == "recovered") ckpt.finish();
  });
  CHECK(std::count(said.begin(), said.end(), "device") == 1);
  (void)cuda.forgive();
  job.start(3, [&](ms::CheckpointerOptions o, int rank) {
    ms::Checkpointer ckpt(std::move(o));
    ms::Dict state = state_on(cuda, rank, 3, 777);
    require(ckpt.recover(state).step == 10, "another step");
    const auto wrong = difference(on_host(cuda, state), on_host(cuda, state_on(cuda, rank, 3, 10)));
    require(wrong.empty(), wrong);
    ckpt.finish();
  });
}
