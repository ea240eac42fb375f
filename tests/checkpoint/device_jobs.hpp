#pragma once
// A trainer whose tensors are on a device, and its job: what the tests of devices' jobs share.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include <meshstage/core/error/error.hpp>

#include "tests/support/cuda.hpp"
#include "tests/support/in_process_job.hpp"

namespace device_jobs {

namespace ms = meshstage;
using ms::test::Cuda;
using ms::test::InProcessJob;

constexpr std::int64_t kLarge = 300'000, kOdd = 5000, kSmall = 64, kHost = 1000;

inline ms::Deadline in_time() { return ms::Deadline::after(std::chrono::seconds(20)); }

inline const ms::Tensor& tensor(const ms::Value& v, const char* key) {
  return v.at(key).as<ms::Tensor>();
}

// stage() that threw before has skipped its step: the next one is refused until that has ended.
inline ms::Staging stage_soon(ms::Checkpointer& ckpt, const ms::Dict& state, std::uint64_t step) {
  const auto deadline = in_time();
  while (true) {
    try {
      return ckpt.stage(state, step);
    } catch (const ms::InvalidState& e) {
      if (std::string(e.what()).find("is unfinished") == std::string::npos || deadline.expired())
        throw;
      std::this_thread::yield();
    }
  }
}

// One rank's trainer: tensors on a device and of the CPU, and the stream that it works on.
struct Trainer {
  Trainer(Cuda& the_cuda, int the_rank)
      : cuda(the_cuda),
        rank(the_rank),
        stream(cuda.open_stream()),
        state{{"large", cuda.tensor(kLarge)},
              {"odd", cuda.tensor(kOdd, 0, 3)},
              {"small", cuda.tensor(kSmall)},
              {"host", ms::Tensor::full<std::uint8_t>({kHost}, 0)}} {}
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;
  ~Trainer() {
    cuda.synchronize(stream);
    cuda.close_stream(stream);
  }
  [[nodiscard]] ms::TrainerStream where() const { return {Cuda::kDevice, stream}; }
  [[nodiscard]] unsigned char value(std::uint64_t step) const {
    return static_cast<unsigned char>(1 + rank * 100 + static_cast<int>(step));
  }
  // As a step would, on the stream.
  void update_device(unsigned char to) {
    for (const char* key : {"large", "odd", "small"}) cuda.set(tensor(state, key), to, stream);
  }
  void update(std::uint64_t step) {
    update_device(value(step));
    for (auto& element : tensor(state, "host").span<std::uint8_t>()) element = value(step);
  }
  [[nodiscard]] bool has(std::uint64_t step) const {
    const auto all = [&](std::span<const std::byte> bytes) {
      return std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) {
        return std::to_integer<unsigned char>(b) == value(step);
      });
    };
    return all(cuda.read(tensor(state, "large"))) && all(cuda.read(tensor(state, "odd"))) &&
           all(cuda.read(tensor(state, "small"))) && all(tensor(state, "host").storage().bytes());
  }
  ms::Outcome stage(ms::Checkpointer& ckpt, std::uint64_t step) {
    update(step);
    auto staging = stage_soon(ckpt, state, step);
    staging.before_update(where());
    update_device(255);
    staging.staged().wait(in_time());
    return staging.outcome().get(in_time());
  }

  Cuda& cuda;
  int rank;
  ms::StreamHandle stream;
  ms::Dict state;
};

inline ms::CheckpointerOptions options(InProcessJob& job, const Trainer& trainer,
                                       bool snapshot = false) {
  auto o = job.options(trainer.rank);
  o.block_bytes = std::uint64_t{64} << 10U;
  o.persist_every = 0;
  o.streams = {trainer.where()};
  if (snapshot) o.snapshot = ms::Snapshot::kAuto;
  return o;
}

inline bool replica_has(const ms::Value& state, unsigned char value) {
  for (const char* key : {"large", "odd", "small", "host"}) {
    const auto bytes = tensor(state, key).storage().bytes();
    if (!std::all_of(bytes.begin(), bytes.end(),
                     [&](std::byte b) { return std::to_integer<unsigned char>(b) == value; })) {
      return false;
    }
  }
  return true;
}

}  // namespace device_jobs
