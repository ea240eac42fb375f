#include "tools/bench/device_digests.hpp"

#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage::tools::bench {

DeviceDigestTime::DeviceDigestTime(Device device, const Value& state)
    : stream_(DeviceRuntime::of(device.type).open_stream(device)) {
  const auto plan = StagingPlan::compile(state);
  const auto source = plan.capture(state);
  if (!source) return;
  auto blocks = detail::digested_blocks(plan.layout(), source->storages);
  for (auto& one : blocks.devices) {
    if (one.device == device) work_ = std::move(one);
  }
}

void DeviceDigestTime::add_to(std::map<std::string, Samples>& parts) {
  if (work_.blocks.empty()) return;
  parts["digest on the device"].add(
      seconds_of([&] { stream_.digest(work_.blocks, work_.runs).made.wait(); }));
}

}  // namespace meshstage::tools::bench
