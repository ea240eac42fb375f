// A rank of nccl_ranks_test: nccl_rank_worker STORE NAME [LIBCUDA LIBNCCL]. The last two are fakes,
// opened first. Reads commands, one a line, and answers each in the Store under NAME/<number>:
//   form GENERATION SIZE RANK  connects a group             "ok"
//   check                      every operation once, compared with the host   "ok"
//   loop MS                    says "NAME/looping", then reduces with this deadline until it throws
//   close                      "ok"
//   generations FIRST COUNT SIZE RANK   forms, reduces and ends COUNT groups   "ok", or what is
//   left
#include <dlfcn.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/nccl/group.hpp>
#include <meshstage/core/comm/reduce.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/support/fake_cuda/control.hpp"
#include "tests/support/own_process.hpp"
#include "tests/support/require.hpp"

// AddressSanitizer keeps up to 256 MB of what was freed, which generations() would take for growth.
extern "C" const char* __asan_default_options() { return "quarantine_size_mb=16"; }

namespace {

using namespace meshstage;
using meshstage::test::require;
using namespace std::chrono_literals;
using collectives::Element;
using collectives::ReduceOp;

constexpr Device kDevice{DeviceType::kCuda, 0};
Deadline soon() { return Deadline::after(60s); }

/// Memory of the device that holds elements of a type.
template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : OnDevice(values.size()) {
    copy(CopyDirection::kToDevice, memory_.get(), values.data());
  }
  explicit OnDevice(std::size_t count)
      : count_(count), memory_(runtime().allocate(kDevice, count * sizeof(T))) {}
  [[nodiscard]] std::span<std::byte> bytes() const { return {memory_.get(), count_ * sizeof(T)}; }
  [[nodiscard]] std::vector<T> read() const {
    std::vector<T> values(count_);
    copy(CopyDirection::kToHost, values.data(), memory_.get());
    return values;
  }

 private:
  static DeviceRuntime& runtime() { return DeviceRuntime::of(DeviceType::kCuda); }
  void copy(CopyDirection direction, void* to, const void* from) const {
    auto stream = runtime().open_stream(kDevice);
    const DeviceCopy one{to, from, count_ * sizeof(T)};
    stream.copy(direction, {&one, 1});
    stream.record().wait(soon());
  }
  std::size_t count_;
  std::shared_ptr<std::byte> memory_;
};

template <class T>
std::vector<T> values_of(int rank, std::size_t count) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = static_cast<T>((static_cast<std::size_t>(rank) * 7 + i * 13) % 23);
  return values;
}

/// Floating types, as they are stored and computed with.
struct Half : collectives::arithmetic::Half {
  static constexpr Element kElement = Element::kF16;
  static constexpr float kRounding = 0x1p-11F;
  static constexpr float kLarge = 60'000;  // two of them are no half
};
struct BFloat : collectives::arithmetic::BFloat {
  static constexpr Element kElement = Element::kBF16;
  static constexpr float kRounding = 0x1p-8F;
  static constexpr float kLarge = 3e38F;
};
struct Single : collectives::arithmetic::Plain<float> {
  static constexpr Element kElement = Element::kF32;
  static constexpr float kRounding = 0x1p-24F;
  static constexpr float kLarge = 3e38F;
};

/// Numbers so small that sums and products of four ranks are exact in every floating type.
template <class T>
auto few_values_of(int rank, std::size_t count) {
  std::vector<typename T::Stored> values;
  for (std::size_t i = 0; i < count; ++i) {
    values.push_back(
        T::store(static_cast<float>((static_cast<std::size_t>(rank) * 7 + i * 13) % 4)));
  }
  return values;
}

/// A mean, which NCCL makes as a sum of parts that it has multiplied by 1/n: some roundings off.
template <class T>
void require_mean(float got, float mean, int size, const std::string& what) {
  const float allowed = static_cast<float>(size + 2) * T::kRounding * std::abs(mean);
  require(std::abs(got - mean) <= allowed,
          what + ": " + std::to_string(got) + " instead of " + std::to_string(mean) + ", which");
}

/// Sums, products, and means of a floating type; also means whose sum would be no number.
template <class T>
void check_floating(ProcessGroup& group, std::size_t count, const std::string& type) {
  using Stored = typename T::Stored;
  const auto combined = [&](std::size_t n, float begin, auto combine) {
    std::vector<float> all(n, begin);
    for (int r = 0; r < group.size(); ++r) {
      const auto values = few_values_of<T>(r, n);
      for (std::size_t i = 0; i < n; ++i) all[i] = combine(all[i], T::load(values[i]));
    }
    return all;
  };
  const auto size = static_cast<float>(group.size());
  const auto sum = [](float a, float b) { return a + b; };
  const auto reduces = [&](ReduceOp op, const std::vector<float>& expected, const char* what) {
    const OnDevice<Stored> data(few_values_of<T>(group.rank(), count));
    collectives::all_reduce(group, data.bytes(), T::kElement, op, soon());
    const auto got = data.read();
    for (std::size_t i = 0; i < count; ++i) {
      require(T::load(got[i]) == expected[i], std::string("all_reduce ") + what + " of " + type);
    }
  };
  reduces(ReduceOp::kSum, combined(count, 0, sum), "sum");
  reduces(ReduceOp::kProduct, combined(count, 1, [](float a, float b) { return a * b; }),
          "product");
  reduces(ReduceOp::kMin, combined(count, 9, [](float a, float b) { return std::min(a, b); }),
          "min");
  reduces(ReduceOp::kMax, combined(count, 0, [](float a, float b) { return std::max(a, b); }),
          "max");
  const OnDevice<Stored> mean(few_values_of<T>(group.rank(), count));
  collectives::all_reduce(group, mean.bytes(), T::kElement, ReduceOp::kAvg, soon());
  const auto means = mean.read();
  const auto sums = combined(count, 0, sum);
  for (std::size_t i = 0; i < count; ++i) {
    require_mean<T>(T::load(means[i]), sums[i] / size, group.size(), "all_reduce mean of " + type);
  }
  const OnDevice<Stored> large(std::vector<Stored>(count, T::store(T::kLarge)));
  collectives::all_reduce(group, large.bytes(), T::kElement, ReduceOp::kAvg, soon());
  for (const auto value : large.read()) {
    require_mean<T>(T::load(value), T::kLarge, group.size(), "all_reduce large mean of " + type);
  }
  const auto ranks = static_cast<std::size_t>(group.size());
  const OnDevice<Stored> whole(few_values_of<T>(group.rank(), count * ranks));
  const OnDevice<Stored> part(count);
  const auto all = combined(count * ranks, 0, sum);
  const auto begin = count * static_cast<std::size_t>(group.rank());
  collectives::reduce_scatter(group, whole.bytes(), part.bytes(), T::kElement, ReduceOp::kSum,
                              soon());
  const auto part_sums = part.read();
  collectives::reduce_scatter(group, whole.bytes(), part.bytes(), T::kElement, ReduceOp::kAvg,
                              soon());
  const auto part_means = part.read();
  for (std::size_t i = 0; i < count; ++i) {
    require(T::load(part_sums[i]) == all[begin + i], "reduce_scatter of " + type);
    require_mean<T>(T::load(part_means[i]), all[begin + i] / size, group.size(),
                    "reduce_scatter mean of " + type);
  }
}

template <class T>
void check_reductions(ProcessGroup& group, std::size_t count, const std::string& type) {
  constexpr auto kElement = collectives::ElementOf<T>::value;
  const auto size = static_cast<std::size_t>(group.size());
  const auto expected = [&](std::size_t n, auto combine) {
    auto all = values_of<T>(0, n);
    for (int r = 1; r < group.size(); ++r) {
      const auto other = values_of<T>(r, n);
      for (std::size_t i = 0; i < n; ++i) all[i] = static_cast<T>(combine(all[i], other[i]));
    }
    return all;
  };
  const auto reduces = [&](ReduceOp op, auto combine, const std::string& what) {
    const OnDevice<T> data(values_of<T>(group.rank(), count));
    collectives::all_reduce(group, data.bytes(), kElement, op, soon());
    require(data.read() == expected(count, combine), "all_reduce " + what + " of " + type);
  };
  const auto sum = [](T a, T b) { return a + b; };
  reduces(ReduceOp::kSum, sum, "sum");
  reduces(ReduceOp::kMax, [](T a, T b) { return std::max(a, b); }, "max");
  reduces(ReduceOp::kMin, [](T a, T b) { return std::min(a, b); }, "min");
  reduces(ReduceOp::kProduct, [](T a, T b) { return a * b; }, "product");
  const OnDevice<T> whole(values_of<T>(group.rank(), count * size));
  const OnDevice<T> part(count);
  collectives::reduce_scatter(group, whole.bytes(), part.bytes(), kElement, ReduceOp::kSum, soon());
  const auto all = expected(count * size, sum);
  const auto begin = all.begin() + static_cast<std::ptrdiff_t>(count) * group.rank();
  require(part.read() == std::vector<T>(begin, begin + static_cast<std::ptrdiff_t>(count)),
          "reduce_scatter of " + type);
}

void check_copies(ProcessGroup& group, std::size_t count) {
  const int size = group.size();
  for (int root = 0; root < size; ++root) {
    const OnDevice<std::uint8_t> data(values_of<std::uint8_t>(group.rank(), count));
    collectives::broadcast(group, data.bytes(), root, soon());
    require(data.read() == values_of<std::uint8_t>(root, count), "broadcast");
  }
  const OnDevice<std::uint8_t> mine(values_of<std::uint8_t>(group.rank(), count));
  const OnDevice<std::uint8_t> all(count * static_cast<std::size_t>(size));
  collectives::all_gather(group, mine.bytes(), all.bytes(), soon());
  std::vector<std::uint8_t> expected;
  for (int r = 0; r < size; ++r) {
    const auto part = values_of<std::uint8_t>(r, count);
    expected.insert(expected.end(), part.begin(), part.end());
  }
  require(all.read() == expected, "all_gather");
}

/// Round the ring both ways, with tags that are received in another order than they were sent.
void check_messages(ProcessGroup& group, std::size_t count) {
  const int size = group.size();
  if (size == 1) return;
  const int next = (group.rank() + 1) % size;
  const int before = (group.rank() + size - 1) % size;
  const OnDevice<std::uint8_t> out(values_of<std::uint8_t>(group.rank(), count));
  const OnDevice<std::uint8_t> from_before(count);
  const OnDevice<std::uint8_t> from_next(count);
  std::vector<std::unique_ptr<Transfer>> posted;
  posted.push_back(group.send(next, 1, out.bytes()));
  posted.push_back(group.send(before, 2, out.bytes()));
  posted.push_back(group.receive(next, 2, from_next.bytes()));
  posted.push_back(group.receive(before, 1, from_before.bytes()));
  for (auto& transfer : posted) transfer->wait(soon());
  require(from_before.read() == values_of<std::uint8_t>(before, count), "what came from before");
  require(from_next.read() == values_of<std::uint8_t>(next, count), "what came from next");
}

void check(ProcessGroup& group, bool fast) {
  for (const std::size_t count : {std::size_t{1}, std::size_t{1000}, std::size_t{300'001}}) {
    if (fast && count > 100'000) continue;
    check_reductions<std::int64_t>(group, count, "i64");
    check_reductions<float>(group, count, "f32");
    check_reductions<double>(group, count, "f64");
    check_floating<Single>(group, count, "f32");
    check_floating<Half>(group, count, "f16");
    check_floating<BFloat>(group, count, "bf16");
    check_copies(group, count);
    check_messages(group, count);
  }
  collectives::barrier(group, soon());
}

std::shared_ptr<ProcessGroup> form(Store& store, std::uint64_t generation, int size, int rank) {
  // A stopped rank is found by its silence after two seconds.
  auto host = make_tcp_transport({.host = "127.0.0.1",
                                  .links = {.heartbeat_interval = 200ms, .silence_deadline = 2s},
                                  .gloo_module = {}});
  ConnectRequest request;
  request.job = "nccl";
  request.generation = generation;
  request.name = "device";
  request.rank = rank;
  request.world_size = size;
  for (int r = 0; r < size; ++r) {
    if (r != rank) request.peers.push_back(r);
  }
  request.store_prefix = "net/" + std::to_string(generation);
  return make_nccl_transport(std::move(host), {})->connect_group(request, store, soon());
}

/// "<threads> threads, <descriptors> descriptors, <KiB>"; looks until they are few, or for 5 s.
std::string settled(int threads, int descriptors) {
  int now_threads = 0;
  int now_descriptors = 0;
  for (const auto until = Deadline::after(5s); !until.expired();) {
    now_threads = testing::count_threads();
    now_descriptors = testing::count_descriptors();
    if (now_threads <= threads && now_descriptors <= descriptors) return "";
  }
  return std::to_string(now_threads) + " threads (before: " + std::to_string(threads) + "), " +
         std::to_string(now_descriptors) + " descriptors (before: " + std::to_string(descriptors) +
         ")";
}

long resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) return std::stol(line.substr(6));
  }
  return 0;
}

/// Every second group ends by an abort, with an operation that nobody else posts in flight.
std::string generations(Store& store, std::uint64_t first, int count, int size, int rank) {
  int threads = 0;
  int descriptors = 0;
  long resident = 0;
  for (int i = 0; i < count; ++i) {
    const auto group = form(store, first + static_cast<std::uint64_t>(i), size, rank);
    check_messages(*group, 1000);
    const OnDevice<std::int64_t> data(std::vector<std::int64_t>{rank + 1});
    collectives::all_reduce(*group, data.bytes(), Element::kI64, ReduceOp::kSum, soon());
    require(data.read()[0] == size * (size + 1) / 2, "the sum of a generation");
    collectives::barrier(*group, soon());
    if (i % 2 == 1) group->abort(std::make_exception_ptr(Cancelled("as the test wants it")));
    group->close();
    if (i != count / 2) continue;  // the first ones leave what NCCL has once, in large pieces
    (void)settled(0, 0);
    threads = testing::count_threads();
    descriptors = testing::count_descriptors();
    resident = resident_kib();
  }
  const auto left = settled(threads, descriptors);
  if (!left.empty()) return left;
  const long grown = resident_kib() - resident;
  return grown > 16 * 1024 ? "grew by " + std::to_string(grown) + " KiB" : "ok";
}

class Rank {
 public:
  Rank(std::string store, std::string name, const fake_cuda::Control* fake)
      : store_(std::move(store)), name_(std::move(name)), fake_(fake) {}

  void run(const std::string& line) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    std::string answer = "ok";
    try {
      if (command == "form") {
        std::uint64_t generation = 0;
        int size = 0;
        int rank = 0;
        words >> generation >> size >> rank;
        group_ = form(store_, generation, size, rank);
      } else if (command == "check") {
        check(*group_, fake_ != nullptr);
      } else if (command == "loop") {
        int milliseconds = 0;
        words >> milliseconds;
        loop(std::chrono::milliseconds(milliseconds));
      } else if (command == "close") {
        group_->close();
        group_.reset();
      } else if (command == "generations") {
        std::uint64_t first = 0;
        int count = 0;
        int size = 0;
        int rank = 0;
        words >> first >> count >> size >> rank;
        answer = generations(store_, first, count, size, rank);
      } else {
        answer = "unknown command";
      }
    } catch (const std::exception& e) {
      answer = e.what();
    }
    if (fake_ != nullptr && *fake_->violations() != '\0') answer = fake_->violations();
    store_.set(name_ + "/" + std::to_string(++answered_), answer, soon());
  }

 private:
  void loop(std::chrono::milliseconds deadline) {
    const OnDevice<std::int64_t> data(std::vector<std::int64_t>(100'000, 0));
    for (int i = 0;; ++i) {
      if (i == 10) store_.set(name_ + "/looping", "yes", soon());
      collectives::all_reduce(*group_, data.bytes(), Element::kI64, ReduceOp::kSum,
                              Deadline::after(deadline));
    }
  }
  FileStore store_;
  const std::string name_;
  const fake_cuda::Control* const fake_;  // null on a real GPU
  std::shared_ptr<ProcessGroup> group_;
  int answered_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 5) return 2;
  const std::string name = argv[2];
  // NCCL takes ranks with other host ids for ranks on other hosts, and so lets several share a GPU.
  ::setenv("NCCL_HOSTID", name.c_str(), 1);
  ::setenv("NCCL_NET", "Socket", 1);
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 1);
  const fake_cuda::Control* fake = nullptr;
  if (argc == 5) {
    void* const cuda = ::dlopen(argv[3], RTLD_NOW | RTLD_LOCAL);
    if (cuda == nullptr || ::dlopen(argv[4], RTLD_NOW | RTLD_LOCAL) == nullptr) {
      std::cerr << ::dlerror() << "\n";
      return 1;
    }
    fake = reinterpret_cast<fake_cuda::GetControl>(::dlsym(cuda, fake_cuda::kControlSymbol))();
  }
  Rank rank(argv[1], name, fake);
  for (std::string line; std::getline(std::cin, line);) rank.run(line);
  return 0;
}
