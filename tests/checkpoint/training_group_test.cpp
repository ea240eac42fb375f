// The group that a trainer gets: how long its waits last.
#include <chrono>
#include <memory>
#include <vector>

#include <meshstage/core/checkpoint/training_group_impl.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
namespace ms = meshstage;

namespace {

/// How a transfer was waited for.
struct Waits {
  std::vector<ms::Deadline> until;
  std::vector<std::chrono::milliseconds> silences;
};

class NotedTransfer final : public ms::Transfer {
 public:
  explicit NotedTransfer(Waits& waits) : waits_(waits) {}
  void wait(ms::Deadline deadline) override { waits_.until.push_back(deadline); }
  void wait_while_moving(std::chrono::milliseconds silence) override {
    waits_.silences.push_back(silence);
  }

 private:
  Waits& waits_;
};

class NotedGroup final : public ms::ProcessGroup {
 public:
  explicit NotedGroup(Waits& waits) : waits_(waits) {}
  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] int size() const noexcept override { return 2; }
  [[nodiscard]] bool linked(int peer) const noexcept override { return peer == 1; }
  [[nodiscard]] std::unique_ptr<ms::Transfer> send(int, std::uint64_t,
                                                   std::span<const std::byte>) override {
    return std::make_unique<NotedTransfer>(waits_);
  }
  [[nodiscard]] std::unique_ptr<ms::Transfer> receive(int, std::uint64_t,
                                                      std::span<std::byte>) override {
    return std::make_unique<NotedTransfer>(waits_);
  }
  void abort(std::exception_ptr) noexcept override {}
  void close() noexcept override {}

 private:
  Waits& waits_;
};

}  // namespace

TEST_CASE("a trainer's wait without a deadline lasts as long as bytes move") {
  constexpr auto kLimit = 3s;
  Waits waits;
  const auto group = ms::detail::with_limit(std::make_shared<NotedGroup>(waits), kLimit);
  std::vector<std::byte> memory(8);
  group->send(1, 0, memory)->wait(ms::Deadline::never());
  group->receive(1, 0, memory)->wait(ms::Deadline::never());
  CHECK(waits.silences == std::vector<std::chrono::milliseconds>{kLimit, kLimit});
  CHECK(waits.until.empty());

  group->receive(1, 0, memory)->wait_while_moving(1h);
  group->receive(1, 0, memory)->wait_while_moving(5ms);
  CHECK(waits.silences == std::vector<std::chrono::milliseconds>{kLimit, kLimit, kLimit, 5ms});

  const auto before = ms::Deadline::Clock::now();
  group->receive(1, 0, memory)->wait(ms::Deadline::after(1h));
  group->receive(1, 0, memory)->wait(ms::Deadline::at(before));
  REQUIRE(waits.until.size() == 2);
  CHECK(waits.until[0].remaining() <= kLimit);
  CHECK(waits.until[1].expired());
}
