// Several connections: pieces in any order, a slow connection, one that ends, one that lies.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/several_connections.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/transfer/striped_impl.hpp>

#include "tests/conformance/ranks.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::transfer;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;

namespace {

constexpr std::uint64_t kTag = 7;

/// What a test holds closed, and later opens.
class Gate {
 public:
  void open() {
    const MutexLock lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  /// False at the deadline.
  [[nodiscard]] bool pass(Deadline deadline) {
    MutexLock lock(mutex_);
    return changed_.wait_until(lock, deadline,
                               [this]() MESHSTAGE_REQUIRES(mutex_) { return open_; });
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool open_ MESHSTAGE_GUARDED_BY(mutex_) = false;
};

/// A connection of which sent pieces (not notes) leave when `gate` is open. Counts them.
class Gated : public ProcessGroup {
 public:
  Gated(std::shared_ptr<ProcessGroup> inner, Gate& gate, std::function<void()> on_piece)
      : inner_(std::move(inner)), gate_(gate), on_piece_(std::move(on_piece)) {}
  [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
  [[nodiscard]] int size() const noexcept override { return inner_->size(); }
  [[nodiscard]] bool linked(int peer) const noexcept override { return inner_->linked(peer); }
  std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                 std::span<const std::byte> bytes) override {
    if ((tag & kNoteBit) != 0) return inner_->send(peer, tag, bytes);
    on_piece_();
    return std::make_unique<Held>(gate_, peer,
                                  [=, this] { return inner_->send(peer, tag, bytes); });
  }
  std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                    std::span<std::byte> target) override {
    return inner_->receive(peer, tag, target);
  }
  void abort(std::exception_ptr cause) noexcept override {
    inner_->abort(std::move(cause));
    gate_.open();
  }
  void close() noexcept override { inner_->close(); }

 private:
  struct Held : Transfer {
    Held(Gate& g, int to, std::function<std::unique_ptr<Transfer>()> f)
        : gate(g), peer(to), post(std::move(f)) {}
    void wait(Deadline deadline) override {
      if (!gate.pass(deadline)) throw make_error<PeerSilent>("held", peer);
      if (!inner) inner = post();
      inner->wait(deadline);
    }
    Gate& gate;
    const int peer;
    const std::function<std::unique_ptr<Transfer>()> post;
    std::unique_ptr<Transfer> inner;
  };
  const std::shared_ptr<ProcessGroup> inner_;
  Gate& gate_;
  const std::function<void()> on_piece_;
};

/// Two ranks, and the connections of which each one's group is made.
struct Two {
  explicit Two(unsigned connections) {
    for (unsigned i = 0; i < connections; ++i) {
      const auto made = testing::make_groups([&](int rank) { return fabrics[i].attach(rank); }, 2,
                                             testing::Linked::kAll);
      for (std::size_t r = 0; r < 2; ++r) raw[r].push_back(made[r]);
    }
  }
  void join() {
    for (std::size_t r = 0; r < 2; ++r) groups[r] = join_connections(raw[r]);
  }
  [[nodiscard]] Link link(std::size_t rank, std::chrono::milliseconds stall = 30s) {
    return {*groups[rank], 1 - static_cast<int>(rank), kTag, stall, {}};
  }
  std::array<InProcessFabric, 5> fabrics;
  std::array<std::vector<std::shared_ptr<ProcessGroup>>, 2> raw;
  std::array<std::shared_ptr<ProcessGroup>, 2> groups;
};

/// Pieces of 8 bytes, as long as a number that says which piece it is.
struct Numbers {
  explicit Numbers(std::size_t pieces) : sent(pieces), received(pieces) {
    std::iota(sent.begin(), sent.end(), std::uint64_t{1000});
  }
  [[nodiscard]] PieceSource source() {
    return {sent.size(), {}, [this](std::size_t i, std::size_t place) {
              const MutexLock lock(mutex);
              sent_from[place].insert(std::this_thread::get_id());
              return std::as_bytes(std::span(sent)).subspan(i * 8, 8);
            }};
  }
  [[nodiscard]] PieceTarget target() {
    return {received.size(),
            [this](std::size_t i, std::size_t place) {
              const MutexLock lock(mutex);
              if (!in_flight.insert(place).second) ++met;
              return std::as_writable_bytes(std::span(received)).subspan(i * 8, 8);
            },
            [this](std::size_t i, std::size_t place) {
              const MutexLock lock(mutex);
              in_flight.erase(place);
              order.push_back(i);
            },
            {}};
  }
  std::vector<std::uint64_t> sent, received;
  Mutex mutex;
  std::vector<std::size_t> order;
  std::map<std::size_t, std::set<std::thread::id>> sent_from;  ///< Threads by place.
  std::set<std::size_t> in_flight;                             ///< Places of pieces that come.
  unsigned met = 0;                                            ///< Pieces at one place.
};

struct Sixteen {
  std::array<std::byte, 64> bytes{};
  explicit Sixteen(std::initializer_list<std::uint32_t> numbers) {
    std::size_t at = 0;
    for (const auto number : numbers) {
      little_endian::store(bytes.data() + at, number);
      at += 4;
    }
  }
};

}  // namespace

TEST_CASE("a slow connection holds no other one up, and pieces arrive in any order") {
  constexpr std::size_t kPieces = 100;
  Two two(2);
  Gate slow, fast;
  // The fast connection waits until the slow one has as many pieces as it takes.
  std::atomic<unsigned> taken = 0;
  two.raw[0][0] = std::make_shared<Gated>(two.raw[0][0], fast, [] {});
  two.raw[0][1] = std::make_shared<Gated>(two.raw[0][1], slow, [&] {
    if (++taken == kDepth) fast.open();
  });
  two.join();
  Numbers numbers(kPieces);
  std::vector<std::uint64_t> told;
  // Bytes move over the fast one, so nobody is silent, and then the slow one is let go.
  const auto errors = testing::run_ranks(2, [&](int rank) {
    if (rank == 0) return send_striped(two.link(0), numbers.source());
    Link link = two.link(1);
    link.on_piece = [&](std::uint64_t i, std::uint64_t of) {
      told.push_back(i);
      CHECK(of == kPieces);
      if (i == kPieces - kDepth) slow.open();
    };
    receive_striped(link, numbers.target());
  });
  CHECK(errors == std::vector<std::string>(2));
  CHECK(numbers.received == numbers.sent);
  CHECK(taken == kDepth);
  // Each connection has places of its own, at each end.
  CHECK(numbers.met == 0);
  CHECK(numbers.sent_from.size() == 2 * std::size_t{kDepth});
  for (const auto& [place, threads] : numbers.sent_from) {
    CHECK(place < 2 * std::size_t{kDepth});
    CHECK(threads.size() == 1);
  }
  // The slow one's are among the first that were taken, and come last.
  REQUIRE(numbers.order.size() == kPieces);
  CHECK_FALSE(std::is_sorted(numbers.order.begin(), numbers.order.end()));
  const std::vector<std::size_t> late(numbers.order.end() - kDepth, numbers.order.end());
  CHECK(*std::max_element(late.begin(), late.end()) < 2 * std::size_t{kDepth});
  std::vector<std::uint64_t> one_by_one(kPieces);
  std::iota(one_by_one.begin(), one_by_one.end(), std::uint64_t{1});
  CHECK(told == one_by_one);
}

TEST_CASE("a peer is silent when nothing moves over any connection, and not before") {
  Two two(2);
  Gate closed;
  for (auto& connection : two.raw[0]) {
    connection = std::make_shared<Gated>(connection, closed, [] {});
  }
  two.join();
  Numbers numbers(10);
  const auto errors = testing::run_ranks(2, [&](int rank) {
    if (rank == 0) return send_striped(two.link(0), numbers.source());
    // Then the sender goes on, and finds its peer gone.
    const std::shared_ptr<void> at_end(nullptr, [&](void*) { closed.open(); });
    receive_striped(two.link(1, 60ms), numbers.target());
  });
  CHECK_THAT(errors[1], Contains("nothing moved over any connection for 60 ms"));
  CHECK_FALSE(errors[0].empty());
}

TEST_CASE("a wait over one connection lasts as long as bytes move over another") {
  Two two(2);
  two.join();
  std::array<std::byte, 8> late{}, word{};
  std::string error = "still waiting";
  const auto errors = testing::run_ranks(2, [&](int rank) {
    if (rank == 0) {
      // Ends when the other rank is done with its rounds, each much shorter than the silence.
      two.groups[0]->over(0).receive(1, kTag, late)->wait_while_moving(3s);
      return;
    }
    for (int i = 0; i < 40; ++i) {
      const auto until = Deadline::after(100ms);
      auto sent = two.groups[1]->over(1).send(0, kTag, word);
      auto pause = two.groups[1]->over(1).receive(0, kTag + 1, late);
      two.groups[0]->over(1).receive(1, kTag, word)->wait(Deadline::after(30s));
      sent->wait(Deadline::after(30s));
      CHECK_THROWS_AS(pause->wait(until), PeerSilent);
      two.groups[0]->over(1).send(1, kTag + 1, late)->wait(Deadline::after(30s));
      pause->wait(Deadline::after(30s));
    }
    two.groups[1]->over(0).send(0, kTag, word)->wait(Deadline::after(30s));
  });
  CHECK(errors == std::vector<std::string>(2));
}

TEST_CASE("one connection that ends half-way ends the transfer, and all of its group") {
  constexpr std::size_t kPieces = 100;
  const unsigned gone = GENERATE(0U, 1U, 2U);
  // Often: the other connections' threads, which the end cancels, must not be the ones that tell.
  [[maybe_unused]] const int round = GENERATE(range(0, 50));
  Two two(3);
  two.join();
  Numbers numbers(kPieces);
  const auto errors = testing::run_ranks(2, [&](int rank) {
    if (rank == 0) return send_striped(two.link(0), numbers.source());
    Link link = two.link(1);
    link.on_piece = [&](std::uint64_t i, std::uint64_t) {
      if (i == kPieces / 2) two.raw[0][gone]->close();  // as the kernel would end it
    };
    receive_striped(link, numbers.target());
  });
  CHECK_FALSE(errors[0].empty());
  CHECK_THAT(errors[1], Contains("rank 0 left the group"));
  std::array<std::byte, 8> word{};
  for (unsigned i = 0; i < 3; ++i) {
    for (const auto& group : two.groups) {
      const int peer = 1 - group->rank();
      CHECK_FALSE(testing::error_of([&] { (void)group->over(i).send(peer, 1, word); }).empty());
    }
  }
}

TEST_CASE("notes that make no sense end the transfer") {
  constexpr std::uint32_t kNoPiece = 0xFFFFFFFF, kEnd = 0xFFFFFFFE;
  const Sixteen end{kEnd, 0};
  struct Lie {
    std::vector<Sixteen> notes;  // over the first connection; the second one ends at once
    std::string found;
  };
  const std::vector<Lie> lies{
      {{Sixteen{9, 0}}, "a piece that the image has not"},
      {{Sixteen{1, 0}, Sixteen{1, 0}}, "a piece twice"},
      {{Sixteen{kNoPiece, 1, 2}}, "not all of an image that is not here"},
      {{Sixteen{kNoPiece, 15}}, "a note of no sense"},
      {{end, Sixteen{0, 0}}, "a piece after its last one"},
      {{end, end, end, end}, "only 0 of 3 pieces"},
  };
  for (const auto& lie : lies) {
    INFO(lie.found);
    Two two(2);
    two.join();
    Numbers numbers(3);
    Gate over;  // a transfer that is dropped before ends the group
    std::string error;
    const auto errors = testing::run_ranks(2, [&](int rank) {
      if (rank == 1) {
        error = testing::error_of([&] { receive_striped(two.link(1), numbers.target()); });
        return over.open();
      }
      std::vector<std::unique_ptr<Transfer>> posted;
      for (unsigned i = 0; i < kDepth; ++i)
        posted.push_back(two.groups[0]->over(1).send(1, kTag | kNoteBit, end.bytes));
      for (const auto& note : lie.notes)
        posted.push_back(two.groups[0]->over(0).send(1, kTag | kNoteBit, note.bytes));
      for (int i = 0; i < 2; ++i) {
        posted.push_back(two.groups[0]->over(0).send(
            1, kTag, std::as_bytes(std::span(numbers.sent)).subspan(0, 8)));
      }
      CHECK(over.pass(Deadline::after(30s)));
    });
    CHECK(errors == std::vector<std::string>(2));
    CHECK_THAT(error, Contains("rank 0 sent " + lie.found));
  }
}
