// What the benchmarks stage, and how they measure.
#pragma once
#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/states.hpp"

namespace meshstage::bench {

inline constexpr const char* kWorkloads = "gpt2 | gpt2-half | small | mid | big";

inline Dict many(int count, std::int64_t elements) {
  Dict state;
  for (int i = 0; i < count; ++i)
    state.set("t" + std::to_string(i), Tensor::full<float>({elements}, static_cast<float>(i)));
  return state;
}

/// gpt2: its weights and AdamW's moments, F32, 1.49 GB; gpt2-half: half as many layers and half the
/// vocabulary, 0.75 GB; small: 10,000 tensors of 4 KiB; mid: 256 of 4 MiB; big: one of 1 GiB.
/// Nothing for another name.
inline std::optional<Dict> workload(const std::string& name) {
  if (name == "gpt2") return test::gpt2_state(50257, 12, 768, 1024);
  if (name == "gpt2-half") return test::gpt2_state(25136, 6, 768, 1024);
  if (name == "small") return many(10000, 1024);
  if (name == "mid") return many(256, 1 << 20);
  if (name == "big") return many(1, 1 << 28);
  return std::nullopt;
}

inline double seconds(const std::function<void()>& what) {
  const auto begin = std::chrono::steady_clock::now();
  what();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

inline double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.at(v.size() / 2);
}

inline double median_of(int rounds, const std::function<void()>& what) {
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) times.push_back(seconds(what));
  return median(std::move(times));
}

}  // namespace meshstage::bench
