// The tcp:// store: its server and its client, over loopback, over a bad wire, and with peers that
// speak nonsense.
#include <poll.h>

#include <array>
#include <chrono>
#include <optional>
#include <random>
#include <thread>

#include <meshstage/core/comm/tcp_store/server.hpp>
#include <meshstage/core/comm/tcp_store/store.hpp>
#include <meshstage/core/error/error.hpp>

#define XXH_INLINE_ALL
#include <meshstage/core/comm/socket/frame_stream_impl.hpp>
#include <meshstage/core/comm/tcp_store/wire_impl.hpp>

#include "tests/comm/worker_process.hpp"
#include "tests/conformance/ranks.hpp"
#include "tests/conformance/store_suite.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/own_process.hpp"
#include "tests/support/tcp_proxy.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Catch::Matchers::Contains;
using tcp_store::Type;
using Keys = std::vector<std::string>;

std::string port_of(const StoreServer& server) {
  return server.address().substr(server.address().rfind(':') + 1);
}
std::uint16_t port_number(const StoreServer& server) {
  return static_cast<std::uint16_t>(std::stoi(port_of(server)));
}
/// Nobody listens there.
std::uint16_t free_port() { return port_number(StoreServer({})); }
std::shared_ptr<TcpStore> store_at(const std::string& port,
                                   std::chrono::milliseconds patience = 10s) {
  return std::make_shared<TcpStore>(
      TcpStoreOptions{.host = "127.0.0.1", .port = port, .patience = patience});
}

/// A client played by hand.
class HandMadeClient {
 public:
  explicit HandMadeClient(const StoreServer& server)
      : fd_(net::connect_to("127.0.0.1", port_of(server), Deadline::after(20s), -1).fd) {}
  void send(std::span<const std::byte> bytes) const {
    (void)!::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  void ask(Type type, const Keys& texts) {
    send(framing::encode_frame(tcp_store::kFormat, static_cast<std::uint16_t>(type),
                               tcp_store::encode(texts), sent_++));
  }
  /// All that comes until the server ends the connection.
  [[nodiscard]] std::string rest() const {
    std::string all;
    std::array<char, 4096> buffer;
    pollfd wanted{fd_.get(), POLLIN, 0};
    while (::poll(&wanted, 1, 20'000) > 0) {
      const ssize_t n = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
      if (n <= 0) return all;
      all.append(buffer.data(), static_cast<std::size_t>(n));
    }
    throw std::runtime_error("the server did not end the connection");
  }

 private:
  net::Descriptor fd_;
  std::uint32_t sent_ = 0;
};

}  // namespace

TEST_CASE("the tcp store conforms") {
  const StoreServer server({});
  store_conforms([&] { return open_store(server.address()); });
}

TEST_CASE("ranks form over a tcp store") {
  const StoreServer server({});
  ranks_form_over([&] { return open_store(server.address()); });
}

TEST_CASE("a store named by host and port is the server's, and many clients wait in it at once") {
  const StoreServer server({.host = "localhost"});
  const auto store = store_at(port_of(server));
  constexpr int kClients = 64;
  std::vector<std::string> got(kClients);
  std::thread ranks([&] {
    run_ranks_without_error(kClients, [&](int rank) {
      const auto mine = store_at(port_of(server));
      mine->set("here/" + std::to_string(rank), "");
      got[static_cast<std::size_t>(rank)] = mine->wait_for("go", Deadline::after(30s));
    });
  });
  for (int r = 0; r < kClients; ++r) {
    (void)store->wait_for("here/" + std::to_string(r), Deadline::after(30s));
  }
  store->set("go", "now");
  ranks.join();
  CHECK(got == std::vector<std::string>(kClients, "now"));
}

TEST_CASE("where no store listens the error says so, and how to start one") {
  const std::string port = std::to_string(free_port());
  const auto store = store_at(port, 100ms);
  const std::string error = error_of([&] { store->set("k", "v"); });
  CHECK_THAT(error, Contains("tcp://127.0.0.1:" + port));
  CHECK_THAT(error, Contains("meshstage store --listen 127.0.0.1:" + port));
  CHECK_THROWS_AS(store->wait_for("k", Deadline::after(20s)), IoError);
  CHECK_THROWS_AS(store->wait_for("k", Deadline::after(10ms)), Timeout);
}

TEST_CASE("ranks may start before their store") {
  const std::uint16_t port = free_port();
  const auto early = store_at(std::to_string(port), 1ms);  // the deadline counts, not the patience
  std::optional<StoreServer> server;
  server_may_start_later(*early, *store_at(std::to_string(port)),
                         [&] { server.emplace(StoreServerOptions{.port = port}); });
}

TEST_CASE("where no store ever listens, waiting for it ends at the deadline") {
  const std::string port = std::to_string(free_port());
  silence_is_told(*store_at(port), "is `meshstage store --listen 127.0.0.1:" + port + "` running");
}

TEST_CASE("a name that has no address yet may get one, and is waited for") {
  TcpStore store({.host = "store.invalid", .port = "1"});
  std::stop_source stop;
  std::string why;
  CHECK_THROWS_AS(store.wait_reachable(Deadline::never(), stop.get_token(),
                                       [&](const std::string& text) {
                                         why = text;
                                         stop.request_stop();
                                       }),
                  Cancelled);
  CHECK_THAT(why, Contains("the host store.invalid has no address here"));
}

TEST_CASE("a lost connection is made again, in mid wait too") {
  const StoreServer server({});
  TcpProxy proxy("127.0.0.1", port_number(server), {});
  const auto direct = store_at(port_of(server));
  const auto store = store_at(std::to_string(proxy.port()));
  store->set("a", "1");
  std::string got;
  std::thread waiting([&] {
    got = error_of([&] { throw std::runtime_error(store->wait_for("b", Deadline::after(30s))); });
  });
  for (int i = 0; i < 20; ++i) {
    proxy.cut();
    CHECK(store->get("a") == "1");
    CHECK(store->compare_and_create("c/" + std::to_string(i), "mine") == "mine");
  }
  direct->set("b", "2");
  waiting.join();
  CHECK(got == "2");
}

TEST_CASE("a server that starts anew has lost its entries, and who saw them is told") {
  const std::uint16_t port = free_port();
  auto server = std::make_unique<StoreServer>(StoreServerOptions{.port = port});
  const auto store = store_at(std::to_string(port));
  store->set("a", "1");
  std::string waited;
  std::jthread waiting(
      [&] { waited = error_of([&] { (void)store->wait_for("b", Deadline::after(30s)); }); });
  server.reset();
  server = std::make_unique<StoreServer>(StoreServerOptions{.port = port});
  waiting.join();
  CHECK_THAT(waited, Contains("lost its entries"));
  CHECK_THAT(error_of([&] { (void)store->get("a"); }), Contains("lost its entries"));
  CHECK_FALSE(store_at(std::to_string(port))->get("a").has_value());
}

TEST_CASE("bytes that are no requests end their connection, and the server goes on") {
  const StoreServer server({});
  const auto store = store_at(port_of(server));
  store->set("a", "1");
  using framing::encode_frame;
  const auto& format = tcp_store::kFormat;
  const auto request = [&](Type type, const Keys& texts) {
    auto bytes = encode_frame(format, 1, tcp_store::encode({}), 0);
    const auto more =
        encode_frame(format, static_cast<std::uint16_t>(type), tcp_store::encode(texts), 1);
    bytes.insert(bytes.end(), more.begin(), more.end());
    return bytes;
  };
  const auto raw = [&](std::vector<std::uint32_t> numbers) {
    auto bytes = encode_frame(format, 1, tcp_store::encode({}), 0);
    const auto more = encode_frame(format, 3, std::as_bytes(std::span(numbers)), 1);
    bytes.insert(bytes.end(), more.begin(), more.end());
    return bytes;
  };
  std::mt19937 random(7);
  std::vector<std::byte> noise(4096);
  for (auto& b : noise) b = static_cast<std::byte>(random());
  const std::string http = "GET / HTTP/1.1\r\nHost: store\r\nAccept: everything\r\n\r\n";
  auto damaged = request(Type::kGet, {"a"});
  damaged.back() ^= std::byte{1};
  struct Case {
    const char* what;
    std::vector<std::byte> bytes;
    const char* said;
  };
  const std::vector<Case> bad{
      {"noise", noise, "wrong magic"},
      {"http",
       {std::as_bytes(std::span(http)).begin(), std::as_bytes(std::span(http)).end()},
       "wrong magic"},
      {"before a hello", encode_frame(format, 3, tcp_store::encode(Keys{"a"}), 0),
       "before the hello"},
      {"a flipped byte", damaged, "damaged frame"},
      {"no request", request(Type::kValues, {"a"}), "an invalid request"},
      {"two hellos", request(Type::kHello, {}), "an invalid request"},
      {"too few texts", request(Type::kSet, {"a"}), "an invalid request"},
      {"a wait for nothing", request(Type::kWait, {}), "an invalid request"},
      {"an empty key", request(Type::kSet, {"", "v"}), "store key"},
      {"a count that lies", raw({4'000'000'000U, 1}), "no list of texts"},
      {"a length that lies", raw({1, 4'000'000'000U}), "no list of texts"},
      {"a rest", raw({0, 0}), "no list of texts"}};
  for (const auto& c : bad) {
    INFO(c.what);
    const HandMadeClient client(server);
    client.send(c.bytes);
    CHECK_THAT(client.rest(), Contains(c.said));
  }
  {
    // One that goes in the middle of a request, and one that waits and goes.
    HandMadeClient client(server);
    client.send(std::span(damaged).first(50));
    HandMadeClient waiting(server);
    waiting.ask(Type::kHello, {});
    waiting.ask(Type::kWait, {"b"});
  }
  store->set("b", "2");
  CHECK(store->get("a") == "1");
  CHECK(store->list("") == Keys{"a", "b"});
}

TEST_CASE("a full store and a value that is too long are refused, and nothing is lost") {
  const StoreServer server({.max_bytes = 100});
  const auto store = store_at(port_of(server));
  store->set("a", "1");
  CHECK_THAT(error_of([&] { store->set("b", std::string(200, 'x')); }), Contains("full"));
  CHECK_THROWS_AS(store->set("c", std::string((1 << 20) + 1, 'x')), InvalidArgument);
  CHECK(store->get("a") == "1");
  for (int i = 0; i < 50; ++i) {
    store->set("d", std::string(50, 'y'));
    store->remove("d");
  }
  CHECK(store->list("") == Keys{"a"});
}

TEST_CASE("what answers and is no store is called so") {
  // Another server of ours that speaks another protocol: it never greets.
  const net::Descriptor silent = net::listen_on("127.0.0.1");
  const std::string bound = net::address_of(silent.get());
  const auto store = store_at(bound.substr(bound.find(' ') + 1), 50ms);
  CHECK_THAT(error_of([&] { store->set("a", "b"); }), Contains("it did not greet"));
  CHECK_THAT(error_of([&] { store->wait_reachable(Deadline::after(50ms)); }),
             Contains("it did not greet"));
  // One that answers something else will not become a store by being waited for.
  const StoreServer server({});
  TcpProxy other("127.0.0.1", port_number(server),
                 {.change = [](bool to_server, std::vector<std::byte>& piece) {
                   if (!to_server) piece[0] ^= std::byte{1};
                 }});
  CHECK_THAT(
      error_of([&] { store_at(std::to_string(other.port()))->wait_reachable(Deadline::never()); }),
      Contains("no meshstage store"));
}

TEST_CASE("a store and its clients leave no thread and no descriptor") {
  const int threads = count_threads();
  const int descriptors = count_network_descriptors();
  for (int i = 0; i < 20; ++i) {
    const StoreServer server({});
    const auto store = store_at(port_of(server));
    store->set("a", "1");
    CHECK_THROWS_AS(store->wait_for("never", Deadline::after(1ms)), Timeout);
  }
  CHECK(settle(count_threads, threads) == threads);
  CHECK(settle(count_network_descriptors, descriptors) == descriptors);
}

TEST_CASE("a stranger gets no room for a request before it has said hello") {
  const StoreServer server({});
  for (const std::size_t bytes : {std::size_t{1} << 20, std::size_t{16} << 20}) {
    INFO(bytes);
    const HandMadeClient stranger(server);
    auto frame = framing::encode_frame(tcp_store::kFormat, static_cast<std::uint16_t>(Type::kSet),
                                       std::vector<std::byte>(bytes), 0);
    frame.resize(framing::kHeaderBytes);  // the payload would follow, and be kept
    stranger.send(frame);
    CHECK_THAT(stranger.rest(), Contains("too long"));
  }
}

TEST_CASE("strangers that say nothing are dropped, and keep no client out") {
  const StoreServer server({.max_connections = 8, .max_strangers = 4, .hello_deadline = 300ms});
  std::vector<std::unique_ptr<HandMadeClient>> strangers;
  for (int i = 0; i < 40; ++i) strangers.push_back(std::make_unique<HandMadeClient>(server));
  const auto store = open_store(server.address());
  store->set("a", "1");
  CHECK(store->get("a") == "1");
  for (const auto& stranger : strangers) CHECK(stranger->rest().empty());
  CHECK(server.connections() == 1);
  CHECK(store->get("a") == "1");
}

TEST_CASE("a server that listens on every address says one that others can use") {
  for (const std::string host : {"0.0.0.0", "::"}) {
    INFO(host);
    const StoreServer server({.host = host});
    CHECK_THAT(server.address(), !Contains("//0.0.0.0:"));
    CHECK_THAT(server.address(), !Contains("//[::]:"));
    const auto store = open_store(server.address());
    store->set("a", "1");
    CHECK(store->get("a") == "1");
  }
}

TEST_CASE("every call keeps its deadline while a server hangs") {
  // It accepts, as a stopped process's port does, and never answers.
  const net::Descriptor hung = net::listen_on("127.0.0.1");
  const std::string address = net::address_of(hung.get());
  const auto store = store_at(address.substr(address.find(' ') + 1));
  const auto soon = [] { return Deadline::after(100ms); };
  const auto start = std::chrono::steady_clock::now();
  CHECK_THROWS_AS(store->set("a", "1", soon()), Timeout);
  CHECK_THROWS_AS(store->get("a", soon()), Timeout);
  CHECK_THROWS_AS(store->compare_and_create("a", "1", soon()), Timeout);
  CHECK_THROWS_AS(store->list("a", soon()), Timeout);
  CHECK_THROWS_AS(store->remove("a", soon()), Timeout);
  CHECK_THROWS_AS(store->wait_for("a", soon()), Timeout);
  CHECK(std::chrono::steady_clock::now() - start < 5s);
}
