// A child that fork() made has copies of objects whose threads it does not have.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <future>
#include <memory>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/async/work.hpp>
#include <meshstage/core/async/worker.hpp>
#include <thread>

#include "tests/support/catch.hpp"
#include "tests/support/forked.hpp"

using namespace std::chrono_literals;
using meshstage::Deadline;
using meshstage::test::ends_in_forked_child;

TEST_CASE("the child's copy of a worker does nothing") {
  auto worker = std::make_unique<meshstage::Worker>("test");
  std::promise<void> running;
  std::promise<void> release;
  worker->post([&] {
    running.set_value();
    release.get_future().wait();
  });
  running.get_future().wait();
  REQUIRE(ends_in_forked_child([&] {
    worker->stop();
    worker.reset();
  }));
  release.set_value();
}

TEST_CASE("the child's copies of a work, of a promise and of their waiting thread's locks end") {
  meshstage::Promise<int> promise;
  auto work = std::make_unique<meshstage::Work<int>>(promise.work());
  auto mutex = std::make_unique<meshstage::Mutex>();
  auto changed = std::make_unique<meshstage::CondVar>();
  bool waits = false;
  bool done = false;
  std::thread waiter([&] {
    meshstage::MutexLock lock(*mutex);
    waits = true;
    changed->notify_all();
    changed->wait(lock, [&] { return done; });
  });
  {
    meshstage::MutexLock lock(*mutex);
    changed->wait(lock, [&] { return waits; });
  }
  REQUIRE(ends_in_forked_child([&] {
    changed.reset();
    work.reset();
    promise = {};
  }));
  {
    const meshstage::MutexLock lock(*mutex);
    done = true;
    changed->notify_all();
  }
  waiter.join();
}

TEST_CASE("an object is deleted where it was made, and nowhere else") {
  struct Counted {
    int* deleted;
    ~Counted() { ++*deleted; }
  };
  int deleted = 0;
  {
    std::shared_ptr<Counted> object(new Counted{&deleted}, meshstage::DeleteHere{});
    REQUIRE(ends_in_forked_child([&] {
      object.reset();
      if (deleted != 0) ::_exit(1);
    }));
    REQUIRE(deleted == 0);
  }
  REQUIRE(deleted == 1);
}
