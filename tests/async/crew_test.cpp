#include <meshstage/core/async/crew.hpp>

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/forked.hpp"

using meshstage::Crew;

namespace {

std::multiset<std::string> thread_names() {
  std::multiset<std::string> names;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    if (std::getline(file, name)) names.insert(name);
  }
  return names;
}

}  // namespace

TEST_CASE("each task of a job is done once, and its stores are there when run() returns") {
  Crew crew("test", 4);
  REQUIRE(crew.hands() == 4);
  for (const std::size_t count : {0, 1, 2, 3, 4, 5, 1000}) {
    std::vector<int> done(count);
    crew.run(count, [&](std::size_t i) { ++done[i]; });
    REQUIRE(done == std::vector<int>(count, 1));
  }
}

TEST_CASE("as many threads as asked for work at once") {
  Crew crew("crew-of-a-long-name", 3);
  REQUIRE(thread_names().count("crew-of-a-long1") == 0);  // none before there is work
  std::barrier<> all(3);  // passes only if three tasks run at the same time
  crew.run(3, [&](std::size_t) { all.arrive_and_wait(); });
  REQUIRE(thread_names().count("crew-of-a-long1") == 1);
  REQUIRE(thread_names().count("crew-of-a-long2") == 1);
  REQUIRE(thread_names().count("crew-of-a-long3") == 0);

  std::atomic<int> at_once{0}, most{0};
  crew.run(
      200,
      [&](std::size_t) {
        const int now = ++at_once;
        for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
        }
        std::this_thread::yield();
        --at_once;
      },
      2);
  REQUIRE(most <= 2);
}

TEST_CASE("a crew of one has no threads") {
  for (const unsigned hands : {0U, 1U}) {
    Crew crew("nobody", hands);
    const auto self = std::this_thread::get_id();
    bool other = false;
    crew.run(10, [&](std::size_t) { other |= std::this_thread::get_id() != self; });
    REQUIRE_FALSE(other);
    REQUIRE(thread_names().count("nobody1") == 0);
  }
}

TEST_CASE("what a task throws ends the job and comes out of run(), whoever ran it") {
  Crew crew("test", 2);
  std::barrier<> both(2);
  std::atomic<std::size_t> begun{0};
  const auto job = [&](std::size_t failing) {
    crew.run(1000, [&, failing](std::size_t i) {
      ++begun;
      if (i < 2) both.arrive_and_wait();  // one is the caller's, one a helper's
      if (i == failing) throw std::runtime_error("task " + std::to_string(i));
      if (i > 100) std::this_thread::yield();
    });
  };
  for (const std::size_t failing : {0, 1}) {
    REQUIRE_THROWS_WITH(job(failing), "task " + std::to_string(failing));
  }
  begun = 0;
  std::barrier<> again(2);
  REQUIRE_THROWS_AS(crew.run(1000,
                             [&](std::size_t) {
                               ++begun;
                               again.arrive_and_wait();
                               throw std::runtime_error("both");
                             }),
                    std::runtime_error);
  REQUIRE(begun == 2);
  std::size_t sum = 0;  // it is as good as before
  crew.run(5, [&](std::size_t i) { sum += i; }, 1);
  REQUIRE(sum == 10);
}

TEST_CASE("several jobs at once end, and so do jobs within tasks") {
  Crew crew("test", 3);
  std::atomic<int> done{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) crew.run(20, [&](std::size_t) { ++done; });
    });
  }
  for (auto& caller : callers) caller.join();
  REQUIRE(done == 4 * 50 * 20);
  crew.run(4, [&](std::size_t) { crew.run(4, [&](std::size_t) { ++done; }); });
  REQUIRE(done == 4 * 50 * 20 + 16);
}

TEST_CASE("helpers leave the program's signals to its own threads") {
  Crew crew("test", 2);
  std::barrier<> both(2);
  std::atomic<int> open{0};
  const auto self = std::this_thread::get_id();
  crew.run(2, [&](std::size_t) {
    both.arrive_and_wait();
    if (std::this_thread::get_id() == self) return;
    sigset_t blocked;
    ::pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    for (const int number : {SIGINT, SIGTERM, SIGCHLD, SIGUSR1, SIGRTMIN})
      open += sigismember(&blocked, number) == 1 ? 0 : 1;
  });
  REQUIRE(open == 0);
  sigset_t mine;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mine);
  REQUIRE(sigismember(&mine, SIGTERM) == 0);
}

TEST_CASE("a forked child does every task itself and leaves without joining anybody") {
  Crew crew("test", 3);
  std::barrier<> all(3);
  crew.run(3, [&](std::size_t) { all.arrive_and_wait(); });  // the helpers exist and sleep
  REQUIRE(meshstage::test::ends_in_forked_child([&] {
    std::size_t sum = 0;
    crew.run(100, [&](std::size_t i) { sum += i; });
    crew.~Crew();
    if (sum != 4950) throw std::runtime_error("a task was not done");
  }));
  std::atomic<int> done{0};
  crew.run(9, [&](std::size_t) { ++done; });
  REQUIRE(done == 9);
}

TEST_CASE("a crew without work uses no processor time") {
  Crew crew("test", 4);
  std::barrier<> all(4);
  crew.run(4, [&](std::size_t) { all.arrive_and_wait(); });
  // Sleeping threads hardly switch (a sanitizer has a thread, too): polling ones do, by the
  // hundred.
  const auto switches = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_nvcsw;
  };
  const auto cpu = [] {
    timespec t{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // they have gone to sleep
  const auto time = cpu();
  const auto before = switches();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  REQUIRE(switches() - before <= 30);
  REQUIRE(cpu() - time < std::chrono::milliseconds(10));
}
