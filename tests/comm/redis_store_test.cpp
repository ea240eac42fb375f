// The Redis store against a real redis-server.
#include <chrono>
#include <optional>
#include <thread>

#include <meshstage/core/comm/redis/store.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/comm/redis_server.hpp"
#include "tests/conformance/ranks.hpp"
#include "tests/conformance/store_suite.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/tcp_proxy.hpp"

namespace {

using namespace std::chrono_literals;
using namespace meshstage;
using namespace meshstage::testing;
using Catch::Matchers::Contains;
using Keys = std::vector<std::string>;

}  // namespace

TEST_CASE("the Redis store conforms") {
  const RedisServer server;
  store_conforms([&] { return open_store(server.address()); });
}

TEST_CASE("ranks form over a Redis store") {
  const RedisServer server;
  ranks_form_over([&] { return open_store(server.address()); });
}

TEST_CASE("ranks may start before their Redis, and are told if it never comes") {
  std::uint16_t port = 0;
  {
    const RedisServer first;
    port = static_cast<std::uint16_t>(first.port());
  }
  const auto early = open_store("redis://127.0.0.1:" + std::to_string(port));
  silence_is_told(*early, "is a redis-server running there?");
  std::optional<RedisServer> server;
  std::optional<TcpProxy> proxy;
  server_may_start_later(*early, *early, [&] {
    server.emplace();
    proxy.emplace("127.0.0.1", static_cast<std::uint16_t>(server->port()), Wire{}, port);
  });
}

TEST_CASE("a prefix is taken as it is, whatever a pattern would make of it") {
  const RedisServer server;
  const auto store = open_store(server.address());
  for (const char* key : {"a*b/1", "axb/1", "a?b/1", "a[x]b/1", "a\\b/1"}) store->set(key, "");
  CHECK(store->list("a*b/") == Keys{"a*b/1"});
  CHECK(store->list("a?b/") == Keys{"a?b/1"});
  CHECK(store->list("a[x]b/") == Keys{"a[x]b/1"});
  CHECK(store->list("a\\b/") == Keys{"a\\b/1"});
  for (int i = 0; i < 3000; ++i) store->set("many/" + std::to_string(i), "");
  CHECK(store->list("many/").size() == 3000);
}

TEST_CASE("databases are apart, and a password is asked for and given") {
  const RedisServer server("secret");
  const std::string where = "127.0.0.1:" + std::to_string(server.port());
  const auto zero = open_store("redis://:secret@" + where);
  const auto one = open_store("redis://default:secret@" + where + "/1");
  zero->set("a", "0");
  CHECK_FALSE(one->get("a").has_value());
  CHECK_THROWS_AS(one->wait_for("a", Deadline::after(10ms)), Timeout);
  CHECK_THAT(error_of([&] { open_store("redis://" + where)->set("a", ""); }), Contains("NOAUTH"));
  CHECK_THAT(error_of([&] { open_store("redis://:wrong@" + where)->set("a", ""); }),
             Contains("WRONGPASS"));
}

TEST_CASE("a Redis that goes away ends calls and waits with an error that says so") {
  RedisServer server;
  const auto store = make_redis_store(
      {.host = "127.0.0.1", .port = server.port(), .user = {}, .password = {}, .patience = 100ms});
  store->set("a", "1");
  std::string waited;
  std::thread waiting(
      [&] { waited = error_of([&] { (void)store->wait_for("b", Deadline::after(30s)); }); });
  server.kill();
  waiting.join();
  CHECK_THAT(waited, Contains("no store answers at " + server.address()));
  CHECK_THAT(error_of([&] { (void)store->get("a"); }), Contains("is a redis-server running"));
}
