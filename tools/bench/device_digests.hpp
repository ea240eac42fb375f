#pragma once
#include <map>
#include <string>

#include <meshstage/core/stage/digested_blocks.hpp>
#include <meshstage/core/tree/value.hpp>

#include "tools/bench/bench.hpp"

namespace meshstage::tools::bench {

/// The digests that a device makes of a state's image, without the copies beside them.
class DeviceDigestTime {
 public:
  DeviceDigestTime(Device device, const Value& state);
  /// Adds them to `parts`, from the call to the event; nothing if the host digests all blocks.
  void add_to(std::map<std::string, Samples>& parts);

 private:
  detail::DigestedBlocks::OnDevice work_;
  DeviceStream stream_;
};

}  // namespace meshstage::tools::bench
