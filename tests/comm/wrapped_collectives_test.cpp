// Groups that wrap a group with collectives of its own forward these.
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/named_losses_impl.hpp>
#include <meshstage/core/comm/several_connections.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/conformance/ranks.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using collectives::Element;
using collectives::ReduceOp;
using testing::error_of;

namespace {

/// A group of two whose collectives note what they are called with, and throw `error` if there is
/// one.
class OwnGroup final : public ProcessGroup, private collectives::Own {
 public:
  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] int size() const noexcept override { return 2; }
  [[nodiscard]] bool linked(int peer) const noexcept override { return peer == 1; }
  std::unique_ptr<Transfer> send(int /*peer*/, std::uint64_t /*tag*/,
                                 std::span<const std::byte> /*bytes*/) override {
    throw InvalidState("a send");
  }
  std::unique_ptr<Transfer> receive(int /*peer*/, std::uint64_t /*tag*/,
                                    std::span<std::byte> /*target*/) override {
    throw InvalidState("a receive");
  }
  void abort(std::exception_ptr cause) noexcept override { aborted = std::move(cause); }
  void close() noexcept override {}
  [[nodiscard]] collectives::Own* own_collectives() noexcept override { return this; }

  std::vector<std::string> calls;
  std::exception_ptr error;
  std::exception_ptr aborted;

 private:
  void note(const std::string& call) {
    calls.push_back(call);
    if (error) std::rethrow_exception(error);
  }
  void barrier(Deadline /*deadline*/) override { note("barrier"); }
  void broadcast(std::span<std::byte> data, int root, Deadline /*deadline*/) override {
    note("broadcast " + std::to_string(data.size()) + " from " + std::to_string(root));
  }
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all,
                  Deadline /*deadline*/) override {
    note("all_gather " + std::to_string(mine.size()) + " to " + std::to_string(all.size()));
  }
  void all_reduce(std::span<std::byte> data, Element element, ReduceOp op,
                  Deadline /*deadline*/) override {
    note("all_reduce " + std::to_string(data.size()) + " " +
         std::to_string(static_cast<int>(element)) + " " + std::to_string(static_cast<int>(op)));
  }
  void reduce_scatter(std::span<const std::byte> data, std::span<std::byte> mine, Element element,
                      ReduceOp op, Deadline /*deadline*/) override {
    note("reduce_scatter " + std::to_string(data.size()) + " to " + std::to_string(mine.size()) +
         " " + std::to_string(static_cast<int>(element)) + " " +
         std::to_string(static_cast<int>(op)));
  }
};

void call_all(ProcessGroup& group) {
  std::vector<std::byte> data(8);
  std::vector<std::byte> part(4);
  collectives::barrier(group);
  collectives::broadcast(group, data, 1);
  collectives::all_gather(group, part, data);
  collectives::all_reduce(group, data, Element::kBF16, ReduceOp::kAvg);
  collectives::reduce_scatter(group, data, part, Element::kF16, ReduceOp::kMax);
}

const std::vector<std::string> kCalls{"barrier", "broadcast 8 from 1", "all_gather 4 to 8",
                                      "all_reduce 8 6 1", "reduce_scatter 8 to 4 5 4"};

}  // namespace

TEST_CASE("a group with named losses forwards a backend's collectives, and names who died") {
  const auto inner = std::make_shared<OwnGroup>();
  const auto group =
      detail::with_named_losses(inner, [](int rank, const std::string& reason, Deadline /*by*/) {
        CHECK(rank == 1);
        CHECK_THAT(reason, contains_text("the link ended"));
        return DeathCause{3, "died first"};
      });
  call_all(*group);
  CHECK(inner->calls == kCalls);
  inner->error = std::make_exception_ptr(make_error<PeerLost>("the link ended", 1));
  const auto error = error_of([&] { collectives::barrier(*group); });
  CHECK_THAT(error, contains_text("peer lost: rank 3 died first"));
  inner->error = std::make_exception_ptr(PeerSilent("late"));
  CHECK_THAT(error_of([&] { collectives::barrier(*group); }), contains_text("peer silent: late"));
}

TEST_CASE("a group of several connections forwards the first one's collectives") {
  const auto inner = std::make_shared<OwnGroup>();
  const auto second = std::make_shared<OwnGroup>();
  const auto group = join_connections({inner, second});
  call_all(*group);
  CHECK(inner->calls == kCalls);
  CHECK(second->calls.empty());
  // A lost rank ends all connections.
  inner->error = std::make_exception_ptr(make_error<PeerLost>("rank 1", 1));
  CHECK_THROWS_AS(collectives::barrier(*group), PeerLost);
  CHECK(second->aborted != nullptr);
}
