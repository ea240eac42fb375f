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

/// All the engine's calls to the Store, on a thread of its own (`ms-store`): a Store that hangs
/// keeps nothing else from going on. Threads: the loop's, except where a comment says otherwise.
class StoreWorker {
 public:
  StoreWorker(Engine& engine, std::shared_ptr<Store> store);

  /// What a call brought: a value (nothing where the key has none), or an error.
  struct Answer {
    std::optional<std::string> value;
    std::exception_ptr error;
  };
  /// Runs `call`, which hands the deadline down, on the worker and then `then` on the loop, once:
  /// with the answer, or with a Timeout that says `what` if there is none by the deadline. Nothing
  /// of it keeps a generation from being left, so `then` checks in which one it runs.
  void ask(std::string what, std::function<std::optional<std::string>(Store&, Deadline)> call,
           Deadline deadline, std::function<void(Answer)> then);

  /// Not on the loop: waits until every call has ended, at most until the deadline.
  void settle(Deadline deadline);
  /// Waits for the call that runs; the others are dropped.
  void stop() { worker_.stop(); }

 private:
  Engine& engine_;
  const std::shared_ptr<Store> store_;
  TaskScope calls_;
  Worker worker_;
};

}  // namespace meshstage::replicate
