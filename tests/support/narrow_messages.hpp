// A wire on which few claims fit a message, as if a job had left a hundred thousand files.
#pragma once
#include <algorithm>
#include <memory>
#include <mutex>
#include <variant>
#include <vector>

#include "tests/support/meddling_transport.hpp"
#include "tests/support/wire_context.hpp"

namespace meshstage::test {

/// Leaves out of each Have what its sender would leave out if so many claims filled a message. For
/// jobs of an InProcessJob's name. Threads: any.
class NarrowMessages {
 public:
  NarrowMessages(int world_size, std::size_t claims) {
    meddler_.message = [this, context = wire_context(world_size), claims](int from, int,
                                                                          Bytes& bytes) {
      protocol::Message message = protocol::decode(context, from, bytes);
      if (const auto* ask = std::get_if<protocol::AskDisk>(&message.body)) {
        const std::lock_guard lock(mutex_);
        asked_.push_back(*ask);
      }
      auto* have = std::get_if<protocol::Have>(&message.body);
      if (have == nullptr) return;
      const std::size_t room = claims * protocol::encoded_bytes(protocol::Claim{});
      have->beyond = std::max(have->beyond, protocol::leave_out_oldest(have->claims, room));
      bytes = protocol::encode(context, from, message);
    };
  }
  void attach(CheckpointerOptions& options) {
    options.transport = meddler_.wrap(options.transport);
  }
  /// What ranks were asked for, in the order of asking.
  std::vector<protocol::AskDisk> asked() {
    const std::lock_guard lock(mutex_);
    return asked_;
  }

 private:
  Meddler meddler_;
  std::mutex mutex_;
  std::vector<protocol::AskDisk> asked_;
};

}  // namespace meshstage::test
