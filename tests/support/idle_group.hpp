// A process group over which nothing goes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>

#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::test {

/// For tests that ask a group only who is in it, or what it has moved.
class IdleGroup : public ProcessGroup {
 public:
  [[nodiscard]] std::unique_ptr<Transfer> send(int, std::uint64_t,
                                               std::span<const std::byte>) override {
    return nullptr;
  }
  [[nodiscard]] std::unique_ptr<Transfer> receive(int, std::uint64_t,
                                                  std::span<std::byte>) override {
    return nullptr;
  }
  void abort(std::exception_ptr) noexcept override {}
  void close() noexcept override {}
};

}  // namespace meshstage::test
