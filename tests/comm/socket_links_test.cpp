#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <atomic>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/socket/links.hpp>
#include <meshstage/core/comm/socket/net_impl.hpp>
#include <meshstage/core/error/error.hpp>

#define XXH_INLINE_ALL
#include <meshstage/core/comm/socket/frame_impl.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/conformance/control_links_suite.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/own_process.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Catch::Matchers::Contains;
using link_wire::FrameType;

std::vector<std::byte> encode_frame(FrameType type, std::span<const std::byte> payload,
                                    std::uint32_t number) {
  return framing::encode_frame(link_wire::kFormat, static_cast<std::uint16_t>(type), payload,
                               number);
}

using link_wire::Greeting;
using Lines = std::vector<std::string>;

TransportOf tcp() {
  return [](int /*rank*/) { return make_tcp_transport({}); };
}

/// A peer played by hand: rank 1 of 2, which connects to the links of rank 0.
class HandMadePeer {
 public:
  explicit HandMadePeer(Store& store) {
    std::istringstream address(store.wait_for("net/links/0", Deadline::after(20s)));
    std::string host;
    int port = 0;
    address >> host >> port >> nonce;
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<std::uint16_t>(port));
    ::inet_pton(AF_INET, host.c_str(), &to.sin_addr);
    if (::connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) {
      throw_errno("connect", host, errno);
    }
  }
  HandMadePeer(const HandMadePeer&) = delete;
  HandMadePeer& operator=(const HandMadePeer&) = delete;
  ~HandMadePeer() { ::close(fd_); }

  void send(std::span<const std::byte> bytes) const {
    (void)!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  void frame(FrameType type, std::span<const std::byte> payload = {}) const {
    send(next(type, payload));
  }
  /// The next frame, not sent: a test changes it.
  std::vector<std::byte> next(FrameType type, std::span<const std::byte> payload = {}) const {
    return encode_frame(type, payload, sent_++);
  }
  /// The type of the next frame that is no heartbeat, and its payload as text; "end" at the end.
  [[nodiscard]] std::string read() const {
    while (true) {
      std::array<std::byte, link_wire::kHeaderBytes> header{};
      if (::recv(fd_, header.data(), header.size(), MSG_WAITALL) <= 0) return "end";
      const auto decoded = framing::decode_header(link_wire::kFormat, header.data(), heard_++);
      std::string payload(decoded.length, '\0');
      if (decoded.length > 0) (void)!::recv(fd_, payload.data(), payload.size(), MSG_WAITALL);
      const auto type = static_cast<FrameType>(decoded.type);
      if (type == FrameType::kHeartbeat) continue;
      return std::to_string(decoded.type) + (type == FrameType::kWelcome ? "" : " " + payload);
    }
  }
  std::uint64_t nonce = 0;

 private:
  int fd_ = -1;
  mutable std::uint32_t sent_ = 0;
  mutable std::uint32_t heard_ = 0;
};

/// The links of rank 0, connecting on a thread while the test plays rank 1.
class RankZero {
 public:
  explicit RankZero(LinkOptions options = {}) {
    thread_ = std::thread([this, options] {
      error_ = error_of([&] {
        links_ = connect_socket_links("127.0.0.1", options, request(), store, Deadline::after(20s),
                                      stop_.get_token());
      });
    });
  }
  RankZero(const RankZero&) = delete;
  RankZero& operator=(const RankZero&) = delete;
  ~RankZero() {
    stop_.request_stop();
    if (thread_.joinable()) thread_.join();
  }
  static ConnectRequest request() { return request_of("links", 0, 2, Linked::kAll); }
  ControlLinks& links() {
    if (thread_.joinable()) thread_.join();
    if (!links_) throw std::runtime_error(error_);
    return *links_;
  }
  std::string error() {
    if (thread_.joinable()) thread_.join();
    return error_;
  }
  void stop() { stop_.request_stop(); }
  InMemoryStore store;

 private:
  std::shared_ptr<ControlLinks> links_;
  std::string error_;
  std::stop_source stop_;
  std::thread thread_;
};

/// Of all epoll descriptors of this process together.
int watched_descriptors() {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fdinfo")) {
    std::ifstream info(entry.path());
    for (std::string line; std::getline(info, line);) count += line.starts_with("tfd:") ? 1 : 0;
  }
  return count;
}

std::vector<std::byte> hello(const HandMadePeer& peer) {
  return Greeting::of(RankZero::request(), 1, 0, peer.nonce).encode();
}

/// The links of two ranks.
auto two_linked(const LinkOptions& options) {
  TcpTransportOptions tcp;
  tcp.links = options;
  return make_links([&](int /*rank*/) { return make_tcp_transport(tcp); }, 2, Linked::kAll);
}

}  // namespace

TEST_CASE("a host whose name means loopback or nothing is reached at an interface's address") {
  CHECK(net::address_for_others("192.0.2.7") == "192.0.2.7");
  for (const char* host : {"127.0.1.1", "::1"}) {
    const std::string address = net::address_for_others(host);
    INFO(address);
    // As on any machine: listening there works, and only one without a network has loopback alone.
    const auto listener = net::listen_on(address);
    REQUIRE(listener.valid());
    if (address != host) CHECK(!address.starts_with("127."));
  }
  // A name that nobody knows, and a number, which the system would take for an address.
  for (const char* host : {"no-such-host.invalid", "4711"}) {
    INFO(host);
    std::string address;
    const std::string error = error_of([&] { address = net::address_for_others(host); });
    CHECK(address != host);
    if (address.empty()) CHECK_THAT(error, Contains("MESHSTAGE_HOST"));
  }
}

TEST_CASE("socket links conform") { control_links_conform(tcp()); }

TEST_CASE("a greeting that differs in anything is refused with what it is, and harms nothing") {
  RankZero zero;
  struct Case {
    const char* expected;
    Greeting greeting;
  };
  Greeting good;
  {
    const HandMadePeer peer(zero.store);
    good = Greeting::of(RankZero::request(), 1, 0, peer.nonce);
  }
  std::vector<Case> cases(7, {"", good});
  cases[0].expected = "another job";
  cases[0].greeting.job ^= 1;
  cases[1].expected = "another generation";
  cases[1].greeting.generation = 6;
  cases[2].expected = "another name of the links";
  cases[2].greeting.name ^= 1;
  cases[3].expected = "another rank";
  cases[3].greeting.to = 1;
  cases[4].expected = "rank 5 is not expected here";
  cases[4].greeting.from = 5;
  cases[5].expected = "another world size";
  cases[5].greeting.world_size = 3;
  cases[6].expected = "another nonce";
  cases[6].greeting.nonce ^= 1;
  for (const auto& c : cases) {
    const HandMadePeer peer(zero.store);
    peer.frame(FrameType::kHello, c.greeting.encode());
    CHECK(peer.read() == std::string("3 ") + c.expected);
  }
  const HandMadePeer peer(zero.store);
  peer.frame(FrameType::kHello, hello(peer));
  CHECK(peer.read() == "2");
  CHECK(zero.links().peers() == std::vector{1});
}

TEST_CASE("who connects and is refused hears why") {
  InMemoryStore store;
  std::stop_source stop;
  std::string error;
  std::thread zero([&] {
    (void)error_of([&] {
      (void)make_tcp_transport({})->connect_links(request_of("links", 0, 2, Linked::kAll), store,
                                                  Deadline::after(20s), stop.get_token());
    });
  });
  auto request = request_of("links", 1, 2, Linked::kAll);
  request.generation = 8;
  try {
    (void)make_tcp_transport({})->connect_links(request, store, Deadline::after(20s));
  } catch (const InvalidState& e) {
    error = e.what();
  }
  stop.request_stop();
  zero.join();
  CHECK_THAT(error, Contains("rank 0 refused"));
  CHECK_THAT(error, Contains("another generation"));
}

TEST_CASE("bytes that are no frames drop the link, and the process lives") {
  // Frame 0 was the hello.
  const auto with = [](std::vector<std::byte> frame, std::size_t at, int value) {
    frame[at] = static_cast<std::byte>(value);
    return frame;
  };
  const auto joined = [](std::vector<std::byte> a, const std::vector<std::byte>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  const auto message = encode_frame(FrameType::kMessage, bytes_of("text"), 1);
  const auto later = encode_frame(FrameType::kMessage, bytes_of("later"), 2);
  auto too_long = encode_frame(FrameType::kHeartbeat, std::vector<std::byte>(300), 1);
  auto huge = message;
  little_endian::store(huge.data() + 8, std::uint32_t{0xffffffff});
  little_endian::store(huge.data() + 24, XXH3_64bits(huge.data(), 24));
  struct Case {
    const char* what;
    std::vector<std::byte> bytes;
    const char* detail;
    std::size_t messages = 0;  // that arrive before
  };
  const std::vector<Case> bad{
      {"wrong magic", with(message, 0, 'X'), "wrong magic"},
      {"changed length", with(message, 8, 5), "damaged frame header"},
      {"changed number", with(message, 12, 2), "damaged frame header"},
      {"changed digest", with(message, 16, 5), "damaged frame header"},
      {"another version", with(message, 4, 1), "another version"},
      {"changed payload", with(message, 33, 'X'), "a damaged frame"},
      {"displaced", joined(later, message), "out of turn"},
      {"missing", later, "out of turn"},
      {"repeated", joined(message, message), "out of turn", 1},
      {"unknown type", encode_frame(static_cast<FrameType>(99), {}, 1), "unknown type"},
      {"too long for its type", too_long, "too long"},
      {"huge", huge, "too long"},
      {"a second hello", encode_frame(FrameType::kHello, std::vector<std::byte>(80), 1),
       "no place"},
      {"a heartbeat with a payload", encode_frame(FrameType::kHeartbeat, bytes_of("x"), 1),
       "no place"}};
  for (const auto& c : bad) {
    INFO(c.what);
    RankZero zero;
    const HandMadePeer peer(zero.store);
    peer.frame(FrameType::kHello, hello(peer));
    REQUIRE(peer.read() == "2");
    Recorder recorder;
    auto handlers = recorder.handlers();
    std::string detail;
    handlers.on_lost = [&detail, record = handlers.on_lost](int rank, LostReason reason,
                                                            const std::string& why) {
      detail = why;
      record(rank, reason, why);
    };
    zero.links().set_handlers(std::move(handlers));
    peer.send(c.bytes);
    REQUIRE(recorder.wait_for(c.messages + 1));
    CHECK(recorder.seen().back() == "1 lost: protocol error");
    CHECK_THAT(detail, Contains(c.detail));
    CHECK(peer.read() == "3 " + detail);
    zero.links().close();
    CHECK(peer.read() == "end");
  }
}

TEST_CASE("a peer that was not understood hears so, and takes nobody for dead") {
  RankZero zero;
  const HandMadePeer peer(zero.store);
  peer.frame(FrameType::kHello, hello(peer));
  REQUIRE(peer.read() == "2");
  Recorder recorder;
  zero.links().set_handlers(recorder.handlers());
  peer.frame(FrameType::kRefusal, bytes_of("it sent a damaged frame"));
  REQUIRE(recorder.wait_for(1));
  CHECK(recorder.seen() == Lines{"1 lost: protocol error"});
}

TEST_CASE("a connection that ends without a goodbye is a death, and one cut in mid frame too") {
  for (const bool in_mid_frame : {false, true}) {
    RankZero zero;
    auto peer = std::make_unique<HandMadePeer>(zero.store);
    peer->frame(FrameType::kHello, hello(*peer));
    REQUIRE(peer->read() == "2");
    Recorder recorder;
    zero.links().set_handlers(recorder.handlers());
    const auto frame = peer->next(FrameType::kMessage, bytes_of("text"));
    peer->send(std::span(frame).first(frame.size() - (in_mid_frame ? 2 : 0)));
    peer.reset();
    REQUIRE(recorder.wait_for(in_mid_frame ? 1 : 2));
    CHECK(recorder.seen() ==
          (in_mid_frame ? Lines{"1 lost: end of file"} : Lines{"1: text", "1 lost: end of file"}));
  }
}

TEST_CASE("a peer that says nothing is silent after the deadline, one that beats is not") {
  LinkOptions options;
  options.heartbeat_interval = 20ms;
  options.silence_deadline = 200ms;
  RankZero zero(options);
  const HandMadePeer peer(zero.store);
  peer.frame(FrameType::kHello, hello(peer));
  REQUIRE(peer.read() == "2");
  Recorder recorder;
  zero.links().set_handlers(recorder.handlers());
  // Never a frame from us: only the deadline can end it, and it must.
  REQUIRE(recorder.wait_for(1));
  CHECK(recorder.seen() == Lines{"1 lost: silent"});

  options.silence_deadline = 2s;
  const auto beating = two_linked(options);
  Recorder alive;
  beating[0]->set_handlers(alive.handlers());
  std::this_thread::sleep_for(2 * options.silence_deadline);
  beating[1]->send(0, bytes_of("still here"));
  REQUIRE(alive.wait_for(1));
  CHECK(alive.seen() == Lines{"1: still here"});
}

TEST_CASE("a rank whose owner says that it hangs beats no more, and is silent to its peers") {
  LinkOptions options;
  options.heartbeat_interval = 20ms;
  options.silence_deadline = 2s;
  const auto links = two_linked(options);
  Recorder peer;
  Recorder own;
  links[0]->set_handlers(peer.handlers());
  std::atomic<bool> hangs{false};
  auto handlers = own.handlers();
  handlers.alive = [&hangs] { return !hangs; };
  links[1]->set_handlers(std::move(handlers));
  std::this_thread::sleep_for(2 * options.silence_deadline);
  CHECK(peer.seen().empty());
  hangs = true;
  REQUIRE(peer.wait_for(1));
  CHECK(peer.seen() == Lines{"1 lost: silent"});
}

TEST_CASE("a death while others still connect ends the connecting, naming the dead") {
  InMemoryStore store;
  std::string error;
  std::thread zero([&] {
    error = error_of([&] {
      (void)make_tcp_transport({})->connect_links(request_of("links", 0, 3, Linked::kAll), store,
                                                  Deadline::after(20s));
    });
  });
  {
    const HandMadePeer peer(store);
    auto request = request_of("links", 1, 3, Linked::kAll);
    peer.frame(FrameType::kHello, Greeting::of(request, 1, 0, peer.nonce).encode());
    CHECK(peer.read() == "2");
  }
  zero.join();
  CHECK(error.starts_with("peer lost"));
  CHECK_THAT(error, Contains("rank 1"));
}

TEST_CASE("a link that is dropped ends for the peer, and wakes nobody, though a child holds it") {
  LinkOptions options;
  options.heartbeat_interval = 20ms;
  options.silence_deadline = 200ms;
  RankZero zero(options);
  const HandMadePeer peer(zero.store);
  peer.frame(FrameType::kHello, hello(peer));
  REQUIRE(peer.read() == "2");
  Recorder recorder;
  zero.links().set_handlers(recorder.handlers());
  const pid_t child = ::fork();  // a data loader
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (true) ::pause();
  }
  const bool lost = recorder.wait_for(1);  // we say nothing
  const std::string seen = peer.read();
  // Of what epoll watched only the event that wakes the thread is left.
  const int watched = watched_descriptors();
  ::kill(child, SIGKILL);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  REQUIRE(lost);
  CHECK(recorder.seen() == Lines{"1 lost: silent"});
  CHECK(seen == "end");
  CHECK(watched == 1);
}

TEST_CASE("closed links leave no thread and no descriptor") {
  const int threads = count_threads();
  const int descriptors = count_network_descriptors();
  for (int i = 0; i < 20; ++i) {
    const auto links = make_links(tcp(), 3, Linked::kAll);
    links[0]->send(1, bytes_of("x"));
  }
  CHECK(settle(count_threads, threads) == threads);
  CHECK(settle(count_network_descriptors, descriptors) == descriptors);
}

TEST_CASE("a stranger that dribbles is dropped as one that says nothing") {
  InMemoryStore store;
  std::thread ranks([&] {
    (void)run_ranks(1, [&](int) {
      ConnectRequest request;
      request.job = "job";
      request.generation = 1;
      request.name = "links";
      request.rank = 0;
      request.world_size = 2;
      request.peers = {1};
      request.store_prefix = "net";
      (void)make_tcp_transport({})->connect_links(request, store, Deadline::after(8s));
    });
  });
  const HandMadePeer stranger(store);
  const auto hello = stranger.next(FrameType::kHello);
  const auto start = std::chrono::steady_clock::now();
  std::thread dribble([&] {
    for (const std::byte b : hello) {
      stranger.send(std::span(&b, 1));
      std::this_thread::sleep_for(100ms);  // a slow talker has no event to wait for
    }
  });
  CHECK(stranger.read() == "end");
  CHECK(std::chrono::steady_clock::now() - start < 7s);
  dribble.join();
  ranks.join();
}

TEST_CASE("links without an end to their patience form and end") {
  InMemoryStore store;
  run_ranks_without_error(2, [&](int rank) {
    TcpTransportOptions options;
    options.links.silence_deadline = std::chrono::milliseconds::max();
    options.links.heartbeat_interval =
        std::chrono::milliseconds(1) + options.links.silence_deadline / 4;
    auto request = request_of("links", rank, 2, Linked::kAll);
    const auto links = make_tcp_transport(options)->connect_links(
        request, store, Deadline::after(std::chrono::milliseconds::max()));
    Recorder recorder;
    links->set_handlers(recorder.handlers());
    links->send(1 - rank, bytes_of("hi"));
    if (!recorder.wait_for(1)) throw Timeout("nothing came");
    links->set_handlers({});
  });
}

TEST_CASE("a host that is none names the variable that sets it") {
  for (const char* bad : {"12345", "no-such-host.invalid", "10.0.0.300"}) {
    INFO(bad);
    TcpTransportOptions options;
    options.host = bad;
    CHECK_THAT(error_of([&] { (void)make_tcp_transport(options); }), Contains("MESHSTAGE_HOST"));
  }
  TcpTransportOptions brackets;
  brackets.host = "[::1]";
  CHECK_NOTHROW(make_tcp_transport(brackets));
}
