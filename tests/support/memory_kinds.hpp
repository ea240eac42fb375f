// One test under each combination of pin_memory and share_memory.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/pinning.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>

#include "tests/support/catch.hpp"

namespace meshstage::test {

/// A device's pinning without a device: notes what is locked, and refuses what a device refuses.
class FakePinner final : public MemoryPinner {
 public:
  void pin(std::span<std::byte> pages) override {
    const std::lock_guard lock(mutex_);
    if (refuse_from == 0) throw InvalidState("the device locks no more memory");
    if (reinterpret_cast<std::uintptr_t>(pages.data()) % 4096 != 0 || pages.size() % 4096 != 0)
      throw InvalidArgument("only whole pages can be locked, not " + std::to_string(pages.size()) +
                            " bytes at " +
                            std::to_string(reinterpret_cast<std::uintptr_t>(pages.data()) % 4096));
    for (const auto& [begin, bytes] : locked_) {
      if (begin < pages.data() + pages.size() && pages.data() < begin + bytes)
        throw InvalidArgument("locked twice");
    }
    locked_.emplace(pages.data(), pages.size());
    --refuse_from;
  }
  void unpin(std::span<std::byte> pages) noexcept override {
    const std::lock_guard lock(mutex_);
    wrong_unpins += locked_.erase(pages.data()) == 1 ? 0 : 1;
  }
  /// Whether one locked range has all of these bytes.
  [[nodiscard]] bool locks(std::span<const std::byte> bytes) const {
    const std::lock_guard lock(mutex_);
    for (const auto& [begin, size] : locked_) {
      if (begin <= bytes.data() && bytes.data() + bytes.size() <= begin + size) return true;
    }
    return false;
  }
  [[nodiscard]] std::size_t ranges() const {
    const std::lock_guard lock(mutex_);
    return locked_.size();
  }
  int refuse_from = INT32_MAX;  ///< So many calls succeed.
  int wrong_unpins = 0;

 private:
  mutable std::mutex mutex_;
  std::map<const std::byte*, std::size_t> locked_;
};

/// One combination, with a device to pin for.
class MemoryKind {
 public:
  MemoryKind(bool pin, bool share) : pin_(pin), share_(share) {}
  MemoryKind(const MemoryKind&) = delete;
  MemoryKind& operator=(const MemoryKind&) = delete;
  ~MemoryKind() {
    // Values of the test are gone by now.
    CHECK(pinner.ranges() == 0);
    CHECK(pinner.wrong_unpins == 0);
  }
  [[nodiscard]] StagerOptions options() {
    StagerOptions options;
    options.pin_memory = pin_;
    options.pin_memory_min_bytes = 0;
    options.pinner = &pinner;
    options.share_memory = share_;
    options.warn = [](const std::string& text) { FAIL_CHECK(text); };
    return options;
  }
  [[nodiscard]] bool pin() const { return pin_; }
  [[nodiscard]] bool share() const { return share_; }
  FakePinner pinner;

 private:
  bool pin_, share_;
};

}  // namespace meshstage::test

#define MEMORY_KIND_CASE(function, name, pin, share)             \
  TEST_CASE(name ": pin_memory=" #pin " share_memory=" #share) { \
    meshstage::test::MemoryKind kind(pin != 0, share != 0);      \
    function(kind);                                              \
  }
/// MEMORY_KINDS_TEST(views, "views") { ... kind.options() ... }: four test cases.
#define MEMORY_KINDS_TEST(function, name)                                   \
  static void function([[maybe_unused]] meshstage::test::MemoryKind& kind); \
  MEMORY_KIND_CASE(function, name, 0, 0)                                    \
  MEMORY_KIND_CASE(function, name, 0, 1)                                    \
  MEMORY_KIND_CASE(function, name, 1, 0)                                    \
  MEMORY_KIND_CASE(function, name, 1, 1)                                    \
  static void function([[maybe_unused]] meshstage::test::MemoryKind& kind)
