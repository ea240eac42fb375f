#pragma once
#include <atomic>
#include <cstdint>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/pace.hpp>

namespace meshstage::test {

/// Lets the copying of steps fail while `fails` is set.
class FailingPace final : public Pace {
 public:
  void before(std::uint64_t, Watermark&) override {
    if (fails) throw OutOfMemory("no memory to copy into");
  }
  std::atomic<bool> fails{false};
};

}  // namespace meshstage::test
