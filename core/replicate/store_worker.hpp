#pragma once
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/store_calls.hpp>

namespace meshstage::replicate {

/// Posts all calls of the engine to the Store to a thread of their own (`ms-store`), so that a
/// Store that hangs holds up nothing else. Threads: the loop's.
class StoreWorker {
 public:
  StoreWorker(Engine& engine, std::shared_ptr<Store> store);

  using Answer = StoreAnswer;
  /// Runs `call` on the worker; `call` passes the deadline on. Then runs `then` on the loop, once:
  /// with the answer, or, if there is none by the deadline, with a Timeout that says `what`. The
  /// generation may be left meanwhile, so `then` must check in which generation it runs.
  void ask(std::string what, StoreCall call, Deadline deadline, std::function<void(Answer)> then);

  /// Waits until every call has ended, at most until the deadline. Threads: any but the loop's.
  void settle(Deadline deadline);

 private:
  Engine& engine_;
  const std::shared_ptr<Store> store_;
  TaskScope calls_;
  Worker worker_;
};

}  // namespace meshstage::replicate
