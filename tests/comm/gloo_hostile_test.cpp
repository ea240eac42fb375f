// What reaches Gloo's own thread from a peer that dies or lies while a group is formed must fail
// the group, and never end the process. The peer here is a bare socket.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <meshstage/core/comm/gloo/group.hpp>
#include <meshstage/core/comm/gloo/module.hpp>
#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/wrapped_store.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/conformance/ranks.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/forked.hpp"
#include "tests/support/own_process.hpp"

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;

namespace {

// Gloo's address on the wire is a sockaddr_storage and a number; the store has it in hex.
sockaddr_in socket_address(const std::string& hex) {
  std::array<unsigned char, sizeof(sockaddr_in)> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::from_chars(hex.data() + 2 * i, hex.data() + 2 * i + 2, bytes[i], 16);
  }
  sockaddr_in address{};
  std::memcpy(&address, bytes.data(), sizeof(address));
  return address;
}

/// What stands behind the address: what the pair is told first.
std::vector<char> nonce_of(const std::string& text) {
  const std::string hex = text.substr(text.find(' ') + 1);
  std::vector<char> nonce;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    unsigned value = 0;
    std::from_chars(hex.data() + i, hex.data() + i + 2, value, 16);
    nonce.push_back(static_cast<char>(value));
  }
  return nonce;
}

/// An address to publish: the greatest port, so that the other side listens and we connect.
std::string above(const std::string& hex) {
  std::string ours = hex;
  ours.replace(2 * offsetof(sockaddr_in, sin_port), 4, "ffff");
  return ours;
}

/// A connection to a Gloo pair that speaks no more than it is told.
class BareSocket {
 public:
  explicit BareSocket(const std::string& hex) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    const sockaddr_in address = socket_address(hex);
    if (fd_ < 0 ||
        ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
      const int error = errno;
      ::close(fd_);
      throw_errno("connect", "to the pair", error);
    }
  }
  BareSocket(const BareSocket&) = delete;
  BareSocket& operator=(const BareSocket&) = delete;
  ~BareSocket() { ::close(fd_); }
  /// Closes with a reset, as the kernel does for a process that was killed with bytes unread.
  void reset_on_close() const {
    const linger at_once{1, 0};
    if (::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)) != 0) {
      throw_errno("setsockopt", "SO_LINGER", errno);
    }
  }
  [[nodiscard]] int fd() const { return fd_; }
  void read(std::size_t bytes) const {
    std::vector<char> into(bytes);
    if (::recv(fd_, into.data(), bytes, MSG_WAITALL) != static_cast<ssize_t>(bytes)) {
      throw_errno("recv", "from the pair", errno);
    }
  }
  /// As much as the pair takes before it hangs up.
  void write(const std::vector<char>& bytes) const {
    if (::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0 && errno != ECONNRESET &&
        errno != EPIPE) {
      throw_errno("send", "to the pair", errno);
    }
  }

 private:
  int fd_;
};

ConnectRequest request_of(int rank, int generation) {
  ConnectRequest r;
  r.job = "risk";
  r.generation = static_cast<std::uint64_t>(generation);
  r.name = "data";
  r.rank = rank;
  r.world_size = 2;
  r.peers = {1 - rank};
  r.store_prefix = "gen/" + std::to_string(generation);
  return r;
}

// What stands before a message on Gloo's wire.
constexpr std::size_t kPreamble = 6 * sizeof(std::uint64_t);
constexpr std::uint64_t kSendUnbound = 1;
constexpr std::uint64_t kHelloSlot = 0x6d7368656c6c6f21;

std::vector<char> message(std::uint64_t slot, std::uint64_t bytes) {
  const std::array<std::uint64_t, 6> preamble{kPreamble + bytes, kSendUnbound, slot, 0, bytes, 0};
  std::vector<char> all(kPreamble + bytes, 'x');
  std::memcpy(all.data(), preamble.data(), kPreamble);
  return all;
}

std::vector<char> random_bytes(unsigned seed) {
  std::mt19937 random(seed);
  std::vector<char> bytes(100 * kPreamble);
  for (char& b : bytes) b = static_cast<char>(random());
  return bytes;
}

}  // namespace

TEST_CASE("a peer that resets its connection before it was accepted ends no process") {
  const TemporaryFolder folder;
  FileStore store(folder.path());
  WorkerProcess worker(own_folder() + "/gloo_stream_worker",
                       std::vector<std::string>{folder.path(), "1", "2"});
  int generation = 0;
  for (const bool waits_in_connect : {false, true, false, true}) {
    ++generation;
    INFO("generation " << generation);
    const std::string prefix = "gen/" + std::to_string(generation) + "/data";
    worker.tell("form " + std::to_string(generation));
    const auto address = store.wait_for(prefix + "/1/0", Deadline::after(20s));
    if (waits_in_connect) store.set(prefix + "/0/1", above(address));
    // Stopped, it cannot accept before the reset has come.
    worker.stop();
    {
      BareSocket(address).reset_on_close();
    }
    worker.signal(SIGCONT);
    if (!waits_in_connect) store.set(prefix + "/0/1", above(address));
    // It lives, and forms the next group with a true peer.
    ++generation;
    worker.tell("form " + std::to_string(generation));
    const auto group = connect_gloo_group(gloo_module_table(), "127.0.0.1",
                                          request_of(0, generation), store, Deadline::after(20s));
    std::vector<std::byte> chunk(std::size_t{1} << 20);
    group->receive(1, 1, chunk)->wait(Deadline::after(20s));
    CHECK(chunk.back() == std::byte{1});
    group->close();
  }
  worker.tell("end");
  CHECK(worker.finish() == 0);
}

namespace {

/// What a rank says that forms a group with a peer that greets it, and then sends `bytes`.
struct Greeted {
  std::string said;  ///< Of the error; empty if the group was formed.
  ErrorKind kind{};
  std::optional<int> rank;
};

Greeted form_with(const std::vector<char>& bytes, Deadline deadline) {
  InMemoryStore store;
  std::string failure;
  std::thread liar([&] {
    try {
      const auto address = store.wait_for("gen/1/data/0/1", Deadline::after(20s));
      const BareSocket socket(address);
      store.set("gen/1/data/1/0", above(address));
      socket.write(nonce_of(address));
      socket.read(2 * kPreamble);  // it has posted the receive and the send of its greeting
      socket.write(bytes);
      // It hangs up; what that does to our unread bytes is of no interest.
      char rest = 0;
      while (::recv(socket.fd(), &rest, 1, 0) > 0) {
      }
    } catch (const Error& e) {
      failure = e.what();
    }
  });
  Greeted greeted;
  try {
    (void)connect_gloo_group(gloo_module_table(), "127.0.0.1", request_of(0, 1), store, deadline);
  } catch (const Error& e) {
    greeted = {e.what(), e.kind(), e.rank()};
  }
  liar.join();
  CHECK(failure.empty());
  return greeted;
}

}  // namespace

TEST_CASE("a Gloo message that is too long, unasked for or random fails the group alone") {
  struct Case {
    const char* name;
    std::vector<char> bytes;
    bool noticed;  // else the deadline passes
  };
  const Case cases[] = {{"one byte more than its receive", message(kHelloSlot, 65), true},
                        {"far more than its receive", message(kHelloSlot, 1 << 20), true},
                        {"to a slot that nobody receives from", message(77, 64), true},
                        {"random", random_bytes(1), false},
                        {"random", random_bytes(2), false}};
  const int threads = count_threads();
  const int descriptors = count_network_descriptors();
  for (const auto& c : cases) {
    INFO(c.name);
    const Greeted greeted = form_with(c.bytes, Deadline::after(c.noticed ? 20s : 3s));
    CHECK(greeted.kind == (c.noticed ? ErrorKind::kPeerLost : ErrorKind::kTimeout));
    CHECK(greeted.rank == 1);
  }
  CHECK(settle(count_threads, threads) == threads);
  CHECK(settle(count_network_descriptors, descriptors) == descriptors);
}

TEST_CASE("a Gloo peer of another build is refused, with both versions") {
  auto greeting = message(kHelloSlot, 64);
  const auto put = [&](std::size_t at, const auto& what) {
    std::memcpy(greeting.data() + kPreamble + at, &what, sizeof(what));
  };
  put(0, std::array{'m', 's', 'g', 'l', 'o', 'o', 'h', 'i'});
  put(8, std::uint32_t{77});
  const Greeted newer = form_with(greeting, Deadline::after(20s));
  CHECK(newer.kind == ErrorKind::kInvalidState);
  CHECK(newer.rank == 1);
  CHECK_THAT(newer.said,
             Catch::Matchers::Contains("greets with version 77, this one with version"));

  put(0, std::array{'m', 's', 'g', 'l', 'o', 'o', '0', '1'});
  const Greeted stranger = form_with(greeting, Deadline::after(20s));
  CHECK(stranger.kind == ErrorKind::kInvalidState);
  CHECK_THAT(stranger.said, Catch::Matchers::Contains("has another greeting"));
}

namespace {

/// A store in which strangers connect to every address before the peer that it is for learns it.
class StrangersFirst final : public WrappedStore {
 public:
  using Say = std::function<void(BareSocket&, const std::string& address)>;
  StrangersFirst(int count, Say say)
      : WrappedStore(std::make_shared<InMemoryStore>()), count_(count), say_(std::move(say)) {}
  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop) override {
    const std::string address = WrappedStore::wait_for_any(keys, deadline, std::move(stop));
    const std::lock_guard lock(mutex_);
    try {
      for (int i = 0; i < count_; ++i) {
        strangers_.push_back(std::make_unique<BareSocket>(address));
        say_(*strangers_.back(), address);
      }
    } catch (const IoError&) {
      // That end connects, has done so already, and listens no more.
    }
    return address;
  }

 private:
  const int count_;
  const Say say_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<BareSocket>> strangers_;
};

std::vector<char> text(const std::string& of) { return {of.begin(), of.end()}; }

}  // namespace

TEST_CASE("strangers at the data ports keep no peer out") {
  struct Case {
    const char* name;
    int strangers;
    StrangersFirst::Say say;
  };
  const Case cases[] = {
      {"ten bytes", 1, [](BareSocket& s, const std::string&) { s.write(text("0123456789")); }},
      {"a web request", 1,
       [](BareSocket& s, const std::string&) { s.write(text("GET / HTTP/1.1\r\n\r\n")); }},
      {"random bytes", 1, [](BareSocket& s, const std::string&) { s.write(random_bytes(1)); }},
      {"nothing", 3, [](BareSocket&, const std::string&) {}},
      {"nothing, from more than are heard at once", 30, [](BareSocket&, const std::string&) {}},
      {"half of the nonce", 3,
       [](BareSocket& s, const std::string& address) {
         auto half = nonce_of(address);
         half.resize(half.size() / 2);
         s.write(half);
       }},
  };
  const int threads = count_threads();
  const int descriptors = count_network_descriptors();
  for (const auto& c : cases) {
    INFO(c.name);
    StrangersFirst store(c.strangers, c.say);
    const auto start = std::chrono::steady_clock::now();
    run_ranks_without_error(2, [&](int rank) {
      const auto group = connect_gloo_group(gloo_module_table(), "127.0.0.1", request_of(rank, 1),
                                            store, Deadline::after(20s));
      std::vector<std::byte> chunk(1000, std::byte{static_cast<unsigned char>(rank + 1)});
      std::vector<std::byte> got(1000);
      const auto receiving = group->receive(1 - rank, 5, got);
      group->send(1 - rank, 5, chunk)->wait(Deadline::after(20s));
      receiving->wait(Deadline::after(20s));
      if (got.back() != std::byte{static_cast<unsigned char>(2 - rank)}) {
        throw CorruptData("another byte came");
      }
    });
    CHECK(std::chrono::steady_clock::now() - start < 15s);
  }
  CHECK(settle(count_threads, threads) == threads);
  CHECK(settle(count_network_descriptors, descriptors) == descriptors);
}

TEST_CASE("a stranger that says nothing or too little at a data port is dropped after a second") {
  InMemoryStore store;
  std::stop_source stop;
  std::thread pair([&] {  // its peer never comes
    CHECK_THROWS_AS(connect_gloo_group(gloo_module_table(), "127.0.0.1", request_of(0, 1), store,
                                       Deadline::after(60s), stop.get_token()),
                    Cancelled);
  });
  const auto address = store.wait_for("gen/1/data/0/1", Deadline::after(20s));
  for (const std::size_t said : {0U, 1U, 15U}) {
    INFO(said << " bytes of the nonce");
    const auto start = std::chrono::steady_clock::now();
    const BareSocket stranger(address);
    auto beginning = nonce_of(address);
    beginning.resize(said);
    stranger.write(beginning);
    pollfd ended{stranger.fd(), POLLIN, 0};
    CHECK(::poll(&ended, 1, 10'000) == 1);
    const auto took = std::chrono::steady_clock::now() - start;
    CHECK(took > 500ms);
    CHECK(took < 9s);
  }
  stop.request_stop();
  pair.join();
}

TEST_CASE("the child of a fork ends, whatever groups and transfers its parent has") {
  InMemoryStore store;
  std::vector<std::shared_ptr<ProcessGroup>> groups(2);
  std::vector<std::shared_ptr<ControlLinks>> links(2);
  run_ranks_without_error(2, [&](int rank) {
    const auto transport = make_tcp_transport({});
    auto request = request_of(rank, 1);
    groups[static_cast<std::size_t>(rank)] =
        transport->connect_group(request, store, Deadline::after(20s));
    request.name = "links";
    links[static_cast<std::size_t>(rank)] =
        transport->connect_links(request, store, Deadline::after(20s));
  });
  std::vector<std::byte> target(1000);
  auto pending = groups[0]->receive(1, 5, target);
  CHECK(test::ends_in_forked_child([&] {
    pending.reset();
    groups.clear();
    links.clear();
  }));
  // The parent's are as they were.
  const std::vector<std::byte> chunk(1000, std::byte{7});
  groups[1]->send(0, 5, chunk)->wait(Deadline::after(20s));
  pending->wait(Deadline::after(20s));
  CHECK(target.back() == std::byte{7});
}
