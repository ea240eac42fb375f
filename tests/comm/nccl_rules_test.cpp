// The fake NCCL bites: each mistake that a user of NCCL can make is one that a test would see.
#include <array>
#include <thread>

#include <meshstage/core/comm/nccl/module.hpp>
#include <meshstage/core/comm/nccl/module_table_impl.hpp>

#include "tests/comm/nccl_support.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::nccl_module;
using test::Cuda;
using test::Nccl;

namespace {

/// Two ranks, both on this thread.
class Pair {
 public:
  explicit Pair(bool connected = true) {
    ErrorText error{};
    std::array<unsigned char, kIdBytes> id{};
    for (auto& one : ranks_) REQUIRE(table_.open(0, &one, &error) == kDone);
    REQUIRE(table_.make_id(ranks_[0], id.data(), &error) == kDone);
    for (int r = 0; r < 2; ++r)
      REQUIRE(table_.connect(at(r), r, 2, id.data(), &error) == kInProgress);
    if (connected) settle();
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;
  ~Pair() {
    ErrorText error{};
    for (auto* one : ranks_) table_.abort(one, &error);
    // In the opposite order of open(): each gives the thread's context back.
    table_.close(ranks_[1]);
    table_.close(ranks_[0]);
  }
  void settle() {
    ErrorText error{};
    for (auto* one : ranks_) {
      while (table_.state(one, &error) == kInProgress) {
      }
    }
  }
  void launch(int rank, const Tensor& tensor) {
    ErrorText error{};
    const Operation reduce{.kind = Kind::kAllReduce,
                           .peer = 0,
                           .source = tensor.storage().data(),
                           .target = const_cast<std::byte*>(tensor.storage().data()),
                           .count = tensor.storage().nbytes(),
                           .element = kBytes,
                           .reduce = 0};
    const auto result = table_.launch(at(rank), &reduce, 1, &error);
    CHECK(result == kInProgress);
  }
  DeviceEvent record(int rank) {
    return DeviceRuntime::of(DeviceType::kCuda)
        .record({Cuda::kDevice, StreamHandle{table_.stream(at(rank))}});
  }
  void abort(int rank) {
    ErrorText error{};
    table_.abort(at(rank), &error);
  }
  Communicator* at(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }
  const Table& table() { return table_; }

 private:
  const Table& table_ = nccl_module_table();
  std::array<Communicator*, 2> ranks_{};
};

bool done_soon(const DeviceEvent& event) {
  for (int i = 0; i < 1000; ++i) {
    if (event.done()) return true;
  }
  return false;
}

bool says(const std::string& violations, const std::string& text) {
  INFO(violations);
  return violations.find(text) != std::string::npos;
}

}  // namespace

TEST_CASE("fake nccl: what is used as it should be breaks no rule") {
  Nccl nccl;
  const auto a = nccl.cuda().tensor(100, 1);
  const auto b = nccl.cuda().tensor(100, 2);
  Pair pair;
  pair.launch(0, a);
  pair.launch(1, b);
  pair.settle();
  const auto first = pair.record(0);
  const auto second = pair.record(1);
  // Each must get its turn: neither happens without the other.
  for (bool both = false; !both;) {
    both = first.done();
    both = second.done() && both;
  }
  CHECK(nccl.cuda().read(a) == std::vector<std::byte>(100, std::byte{3}));
  CHECK(nccl.cuda().read(b) == std::vector<std::byte>(100, std::byte{3}));
}

TEST_CASE("fake nccl: an operation before the state is success is noted") {
  Nccl nccl;
  const auto a = nccl.cuda().tensor(100, 1);
  Pair pair(false);
  pair.launch(0, a);
  CHECK(says(nccl.cuda().forgive(), "while the communicator's state is in progress"));
}

TEST_CASE("fake nccl: an event that is recorded too early is in front of the operation") {
  Nccl nccl;
  const auto a = nccl.cuda().tensor(100, 1);
  Pair pair;
  pair.launch(0, a);
  CHECK(done_soon(pair.record(0)));  // though rank 1 never takes part
  pair.settle();
  CHECK_FALSE(done_soon(pair.record(0)));
}

TEST_CASE("fake nccl: an aborted stream reports success, and nothing has happened") {
  Nccl nccl;
  const auto a = nccl.cuda().tensor(100, 1);
  Pair pair;
  pair.launch(0, a);
  pair.settle();
  const auto event = pair.record(0);
  CHECK_FALSE(done_soon(event));
  pair.abort(0);
  CHECK(done_soon(event));
  CHECK(nccl.cuda().read(a) == std::vector<std::byte>(100, std::byte{1}));
}

TEST_CASE("fake nccl: communicators used in differing order wait for each other until an abort") {
  Nccl nccl;
  const std::array tensors{nccl.cuda().tensor(100, 1), nccl.cuda().tensor(100, 1),
                           nccl.cuda().tensor(100, 1), nccl.cuda().tensor(100, 1)};
  Pair first;
  Pair second;
  first.launch(0, tensors[0]);
  first.settle();
  second.launch(0, tensors[1]);
  second.settle();
  const bool same_order = GENERATE(true, false);
  for (const bool turn : {same_order, !same_order}) {
    auto& pair = turn ? first : second;
    pair.launch(1, tensors[turn ? 2 : 3]);
    pair.settle();
  }
  const std::array events{first.record(0), first.record(1), second.record(0), second.record(1)};
  const auto all_done = [&] {
    bool all = true;
    for (int i = 0; i < 20; ++i) {
      all = true;
      for (const auto& event : events) all = done_soon(event) && all;
    }
    return all;
  };
  CHECK(all_done() == same_order);
  for (int r = 0; r < 2; ++r) {
    first.abort(r);
    second.abort(r);
  }
  CHECK(all_done());
}

TEST_CASE("fake nccl: a call by another thread is noted") {
  Nccl nccl;
  Pair pair;
  std::thread([&] {
    ErrorText error{};
    (void)pair.table().state(pair.at(0), &error);
  }).join();
  CHECK(says(nccl.cuda().forgive(), "by another thread"));
}
