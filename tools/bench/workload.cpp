#include <algorithm>
#include <cmath>
#include <cstring>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/state_file.hpp>
#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>

#include "tests/support/states.hpp"
#include "tools/bench/bench.hpp"

namespace meshstage::tools::bench {
namespace {

std::int64_t scaled(std::int64_t n, double scale) {
  return std::max<std::int64_t>(1, std::llround(static_cast<double>(n) * scale));
}

Dict many(std::int64_t count, std::int64_t elements) {
  Dict state;
  for (std::int64_t i = 0; i < count; ++i)
    state.set("t" + std::to_string(i), Tensor::full<float>({elements}, static_cast<float>(i)));
  return state;
}

Dict from_file(const std::string& path) {
  // Its tensors are read-only views of the file; a trainer's are memory of its own.
  const Value state = StateDictStager().stage(load_state_file(real_file_system(), path));
  if (const auto* dict = state.get_if<Dict>()) return *dict;
  return {{"state", state}};
}

}  // namespace

Dict make_workload(const std::string& name, double scale) {
  if (name == "gpt2") return test::gpt2_state(scaled(50257, scale), scaled(12, scale), 768, 1024);
  if (name == "gpt2-half")
    return test::gpt2_state(scaled(25136, scale), scaled(6, scale), 768, 1024);
  if (name == "small") return many(scaled(10'000, scale), 1024);
  if (name == "mid") return many(scaled(256, scale), 1 << 20);
  if (name == "big") return many(1, scaled(1 << 28, scale));
  if (name.ends_with(".safetensors")) return from_file(name);
  throw InvalidArgument("there is no workload \"" + name.substr(0, 80) + "\"; there are " +
                        kWorkloads);
}

Changes::Changes(const Dict& state, double fraction) {
  const auto plan = StagingPlan::compile(state);
  storages_ = plan.capture(state)->storages;
  for (const auto& storage : storages_) state_bytes_ += storage.nbytes();
  changing_ = static_cast<std::uint64_t>(std::clamp(fraction, 0.0, 1.0) *
                                         static_cast<double>(state_bytes_));
}

void Changes::step() {
  constexpr std::uint64_t kPage = 4096;
  ++steps_;
  std::uint64_t left = changing_;
  for (const auto& storage : storages_) {
    const auto bytes = std::min<std::uint64_t>(left, storage.nbytes());
    left -= bytes;
    for (std::uint64_t at = 0; at + sizeof steps_ <= bytes; at += kPage)
      std::memcpy(storage.data() + at, &steps_, sizeof steps_);
    if (left == 0) return;
  }
}

}  // namespace meshstage::tools::bench
