// What every kind of ControlLinks does. Call inside a TEST_CASE; it uses SECTIONs.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tests/conformance/ranks.hpp"

namespace meshstage::testing {

/// Handlers that write everything down, and let the test wait for it. The handlers keep what they
/// write to alive.
class Recorder {
 public:
  ControlHandlers handlers();
  /// Waits until `n` messages and losses have come in all; false after 20 seconds.
  bool wait_for(std::size_t n);
  /// "1: text" for a message, "1 lost: end of file" for a loss, in order.
  [[nodiscard]] std::vector<std::string> seen();

 private:
  struct Log {
    void add(std::string line);
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::string> lines;
  };
  std::shared_ptr<Log> log_ = std::make_shared<Log>();
};

std::span<const std::byte> bytes_of(const std::string& text);

void control_links_conform(const TransportOf& transport);

}  // namespace meshstage::testing
