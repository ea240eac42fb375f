// stage_bench [WORKLOAD] ...: how long one staging takes, and how near it comes to
// a plain copy of the same bytes in the same run. Medians of 9; GB = 1e9 bytes.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include <meshstage/core/stage/staging_plan.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>

#include "tools/bench/workloads.hpp"

namespace {

using namespace meshstage;
using bench::median;
using bench::median_of;
using bench::seconds;

void measure(const std::string& name, const Value& state) {
  constexpr int kRounds = 9;
  StateDictStager stager;  // first, as in a trainer: before anything else takes fresh memory
  const auto first = seconds([&] { static_cast<void>(stager.stage(state)); });
  std::optional<StagingPlan> plan;
  const auto compile = median_of(3, [&] { plan = StagingPlan::compile(state); });
  const auto& layout = plan->layout();
  const auto memory = Storage::allocate(layout.image_bytes);
  std::memset(memory.data(), 0, memory.nbytes());
  const auto flat = Storage::allocate(layout.storage_bytes);
  std::memset(flat.data(), 1, flat.nbytes());
  const auto match = median_of(kRounds, [&] {
    if (!plan->matches(state)) std::abort();
  });
  // Taken in turns, so that the machine's drift meets all alike.
  std::vector<double> plain, copies, seals, stages;
  for (int i = 0; i < kRounds; ++i) {
    Watermark progress;
    plain.push_back(seconds(
        [&] { std::memcpy(memory.data() + layout.data_begin, flat.data(), flat.nbytes()); }));
    copies.push_back(seconds([&] {
      plan->write_manifest(memory.bytes());
      plan->copy(state, memory.bytes(), progress);
    }));
    seals.push_back(
        seconds([&] { plan->seal({"bench", 0, 1, {1, 1}, {}}, memory.bytes(), progress); }));
    stages.push_back(seconds([&] { static_cast<void>(stager.stage(state)); }));
  }
  const double gb = static_cast<double>(layout.storage_bytes) / 1e9;
  const double limit = median(plain), copy = median(copies), seal = median(seals),
               stage = median(stages);
  std::printf("%-6s %7.3f GB %6zu storages | compile %7.2f ms, match %6.3f ms, manifest %.2f MB\n",
              name.c_str(), gb, layout.segments.size(), compile * 1e3, match * 1e3,
              static_cast<double>(layout.data_begin) / 1e6);
  std::printf(
      "       memcpy %7.2f ms (%5.1f GB/s) | copy %7.2f ms (%5.1f GB/s, %.2f of memcpy's time) | "
      "seal %7.2f ms (%5.1f GB/s)\n",
      limit * 1e3, gb / limit, copy * 1e3, gb / copy, copy / limit, seal * 1e3, gb / seal);
  std::printf("       StateDictStager: first %7.2f ms, then %7.2f ms (%5.1f GB/s)\n", first * 1e3,
              stage * 1e3, gb / stage);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> names(argv + 1, argv + argc);
  if (names.empty()) names = {"gpt2", "small", "mid", "big"};
  for (const auto& name : names) {
    const auto state = bench::workload(name);
    if (!state) {
      std::fprintf(stderr, "usage: stage_bench [%s] ...\n", bench::kWorkloads);
      return 2;
    }
    measure(name, *state);
  }
}
