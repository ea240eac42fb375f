#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/replicate/engine.hpp>

namespace meshstage::replicate {

/// Makes all calls of the engine to the Store, on a thread of its own (`ms-store`), so that a Store
/// that hangs holds up nothing else. Threads: the loop's, except where a comment says otherwise.
class StoreWorker {
 public:
  StoreWorker(Engine& engine, std::shared_ptr<Store> store);

  /// The result of a call: a value (nothing if the key has none), or an error.
  struct Answer {
    std::optional<std::string> value;
    std::exception_ptr error;
  };
  /// Runs `call` on the worker; `call` passes the deadline on. Then runs `then` on the loop, once:
  /// with the answer, or, if there is none by the deadline, with a Timeout that says `what`. The
  /// generation may be left meanwhile, so `then` must check in which generation it runs.
  void ask(std::string what, std::function<std::optional<std::string>(Store&, Deadline)> call,
           Deadline deadline, std::function<void(Answer)> then);

  /// Waits until every call has ended, at most until the deadline. Must not be called on the loop.
  void settle(Deadline deadline);
  /// Waits for the call that runs, and drops the others.
  void stop() { worker_.stop(); }

 private:
  Engine& engine_;
  const std::shared_ptr<Store> store_;
  TaskScope calls_;
  Worker worker_;
};

}  // namespace meshstage::replicate
