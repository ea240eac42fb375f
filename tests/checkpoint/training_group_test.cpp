// The group that a trainer gets: how long its waits last.
#include <chrono>
#include <memory>
#include <vector>

#include <meshstage/core/checkpoint/training_group_impl.hpp>
#include <meshstage/core/comm/collectives.hpp>
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

/// Collectives of the backend's own, of which the barrier notes its deadline.
class NotedCollectives final : public ms::collectives::Own {
 public:
  explicit NotedCollectives(Waits& waits) : waits_(waits) {}
  void barrier(ms::Deadline deadline) override { waits_.until.push_back(deadline); }
  void broadcast(std::span<std::byte>, int, ms::Deadline) override {}
  void all_gather(std::span<const std::byte>, std::span<std::byte>, ms::Deadline) override {}
  void all_reduce(std::span<std::byte>, ms::collectives::Element, ms::collectives::ReduceOp,
                  ms::Deadline) override {}
  void reduce_scatter(std::span<const std::byte>, std::span<std::byte>, ms::collectives::Element,
                      ms::collectives::ReduceOp, ms::Deadline) override {}

 private:
  Waits& waits_;
};

class NotedGroup final : public ms::ProcessGroup {
 public:
  explicit NotedGroup(Waits& waits, ms::collectives::Own* own = nullptr)
      : waits_(waits), own_(own) {}
  [[nodiscard]] ms::collectives::Own* own_collectives() noexcept override { return own_; }
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
  ms::collectives::Own* const own_;
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

TEST_CASE("a backend's own collective has the limit in all, or its earlier deadline") {
  constexpr auto kLimit = 3s;
  Waits waits;
  NotedCollectives own(waits);
  CHECK(ms::detail::with_limit(std::make_shared<NotedGroup>(waits), kLimit)->own_collectives() ==
        nullptr);
  const auto group = ms::detail::with_limit(std::make_shared<NotedGroup>(waits, &own), kLimit);
  const auto before = ms::Deadline::Clock::now();
  ms::collectives::barrier(*group);
  ms::collectives::barrier(*group, ms::Deadline::after(1h));
  ms::collectives::barrier(*group, ms::Deadline::at(before));
  REQUIRE(waits.until.size() == 3);
  for (const std::size_t i : {0U, 1U}) {
    CHECK_FALSE(waits.until[i].expired());
    CHECK(waits.until[i].remaining() <= kLimit);
  }
  CHECK(waits.until[2].expired());
}
