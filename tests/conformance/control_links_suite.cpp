#include "tests/conformance/control_links_suite.hpp"

#include <chrono>
#include <thread>

#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"

namespace meshstage::testing {

using namespace std::chrono_literals;
using Lines = std::vector<std::string>;

ControlHandlers Recorder::handlers() {
  ControlHandlers h;
  h.on_message = [log = log_](int peer, std::span<const std::byte> message) {
    log->add(std::to_string(peer) + ": " +
             std::string(reinterpret_cast<const char*>(message.data()), message.size()));
  };
  h.on_lost = [log = log_](int peer, LostReason reason, const std::string& /*detail*/) {
    log->add(std::to_string(peer) + " lost: " + std::string(to_string(reason)));
  };
  return h;
}

void Recorder::Log::add(std::string line) {
  const std::lock_guard lock(mutex);
  lines.push_back(std::move(line));
  changed.notify_all();
}

bool Recorder::wait_for(std::size_t n) {
  std::unique_lock lock(log_->mutex);
  return log_->changed.wait_for(lock, 20s, [&] { return log_->lines.size() >= n; });
}

std::vector<std::string> Recorder::seen() {
  const std::lock_guard lock(log_->mutex);
  return log_->lines;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

void control_links_conform(const TransportOf& transport) {
  SECTION("messages arrive whole and in order, the large among the small") {
    const auto links = make_links(transport, 2, Linked::kAll);
    Recorder recorder;
    links[1]->set_handlers(recorder.handlers());
    Lines expected;
    for (int i = 0; i < 200; ++i) {
      const std::string text(i % 50 == 7 ? 3'000'000 : static_cast<std::size_t>(i), 'x');
      links[0]->send(1, bytes_of(text));
      expected.push_back("0: " + text);
    }
    REQUIRE(recorder.wait_for(200));
    CHECK(recorder.seen() == expected);
  }

  SECTION("what comes before there are handlers is kept for them") {
    const auto links = make_links(transport, 2, Linked::kAll);
    links[0]->send(1, bytes_of("one"));
    links[0]->send(1, bytes_of("two"));
    links[0]->close();
    Recorder recorder;
    links[1]->set_handlers(recorder.handlers());
    REQUIRE(recorder.wait_for(3));
    CHECK(recorder.seen() == Lines{"0: one", "0: two", "0 lost: closed"});
  }

  SECTION("handlers can be exchanged by a handler: the next message goes to the new ones") {
    const auto links = make_links(transport, 2, Linked::kAll);
    Recorder later;
    ControlHandlers first;
    first.on_message = [&](int /*peer*/, std::span<const std::byte> /*message*/) {
      links[1]->set_handlers({});
    };
    links[1]->set_handlers(std::move(first));
    for (const char* text : {"first", "second", "third"}) links[0]->send(1, bytes_of(text));
    Recorder other;
    links[0]->set_handlers(other.handlers());
    links[1]->send(0, bytes_of("ping"));
    REQUIRE(other.wait_for(1));
    // The first handler runs at some time; all after it is the recorder's.
    links[0]->close();
    std::thread swap([&] {
      while (later.seen().empty()) links[1]->set_handlers(later.handlers());
    });
    REQUIRE(later.wait_for(1));
    swap.join();
    const auto seen = later.seen();
    CHECK(later.wait_for(seen.front() == "0: first" ? 4 : 3));
    CHECK(later.seen().back() == "0 lost: closed");
  }

  SECTION(
      "what handlers turn down waits for the next ones, and nothing of that peer overtakes it") {
    const auto links = make_links(transport, 3, Linked::kAll);
    Recorder first;
    auto small = first.handlers();
    small.takes = [](int /*peer*/, std::span<const std::byte> m) { return m.size() == 1; };
    links[0]->set_handlers(std::move(small));
    for (const char* text : {"a", "more", "b"}) links[1]->send(0, bytes_of(text));
    links[1]->close();
    REQUIRE(first.wait_for(1));
    links[2]->send(0, bytes_of("c"));
    REQUIRE(first.wait_for(2));
    CHECK(first.seen() == Lines{"1: a", "2: c"});
    Recorder second;
    links[0]->set_handlers(second.handlers());
    REQUIRE(second.wait_for(3));
    CHECK(second.seen() == Lines{"1: more", "1: b", "1 lost: closed"});
  }

  SECTION("a handler may answer") {
    const auto links = make_links(transport, 3, Linked::kAll);
    Recorder recorder;
    links[0]->set_handlers(recorder.handlers());
    for (int r = 1; r < 3; ++r) {
      auto& mine = *links[static_cast<std::size_t>(r)];
      ControlHandlers echo;
      echo.on_message = [&mine](int peer, std::span<const std::byte> m) { mine.send(peer, m); };
      mine.set_handlers(std::move(echo));
    }
    links[0]->send(1, bytes_of("to one"));
    REQUIRE(recorder.wait_for(1));
    links[0]->send(2, bytes_of("to two"));
    REQUIRE(recorder.wait_for(2));
    CHECK(recorder.seen() == Lines{"1: to one", "2: to two"});
  }

  SECTION("a goodbye is told from a death, once to each peer, and close can be called again") {
    const auto links = make_links(transport, 3, Linked::kAll);
    Recorder one;
    Recorder two;
    links[1]->set_handlers(one.handlers());
    links[2]->set_handlers(two.handlers());
    links[0]->send(1, bytes_of("last words"));
    links[0]->close();
    links[0]->close();
    REQUIRE(one.wait_for(2));
    REQUIRE(two.wait_for(1));
    CHECK(one.seen() == Lines{"0: last words", "0 lost: closed"});
    CHECK(two.seen() == Lines{"0 lost: closed"});
    links[1]->send(0, bytes_of("too late"));  // dropped, without an error
    links[0]->send(1, bytes_of("closed"));
    links[1]->send(2, bytes_of("still here"));
    REQUIRE(two.wait_for(2));
    CHECK(two.seen().back() == "1: still here");
  }

  SECTION("who is not linked, and what is too long, is refused") {
    const auto links = make_links(transport, 4, Linked::kTree);
    CHECK(links[1]->peers() == std::vector{0, 3});
    CHECK(links[1]->rank() == 1);
    CHECK_THROWS_AS(links[1]->send(2, bytes_of("x")), InvalidArgument);
    CHECK_THROWS_AS(links[1]->send(1, bytes_of("x")), InvalidArgument);
    const std::string huge(ControlLinks::kMaxMessageBytes + 1, 'x');
    CHECK_THROWS_AS(links[1]->send(0, bytes_of(huge)), InvalidArgument);
  }

  SECTION("no handler runs after close has returned") {
    const auto links = make_links(transport, 2, Linked::kAll);
    for (int i = 0; i < 1000; ++i) links[0]->send(1, bytes_of("many"));
    auto count = std::make_unique<int>(0);
    ControlHandlers h;
    h.on_message = [&count](int /*peer*/, std::span<const std::byte> /*m*/) { ++*count; };
    links[1]->set_handlers(std::move(h));
    links[1]->close();
    count.reset();  // a handler that still ran would be seen by a sanitizer
    SUCCEED();
  }

  SECTION("connecting names who did not come, and can be stopped") {
    InMemoryStore store;
    const auto request = request_of("links", 1, 4, Linked::kAll);
    const std::string error =
        error_of([&] { (void)transport(1)->connect_links(request, store, Deadline::after(20ms)); });
    CHECK(error.starts_with("timeout"));
    CHECK_THAT(error, Catch::Matchers::Contains("rank 0"));
    std::stop_source stop;
    stop.request_stop();
    CHECK_THROWS_AS(
        transport(1)->connect_links(request, store, Deadline::after(20s), stop.get_token()),
        Cancelled);
  }
}

}  // namespace meshstage::testing
