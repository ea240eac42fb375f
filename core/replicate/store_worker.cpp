#include <meshstage/core/replicate/store_worker.hpp>

#include <new>

#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {

StoreWorker::StoreWorker(Engine& engine, std::shared_ptr<Store> store)
    : engine_(engine), store_(std::move(store)), worker_("ms-store", engine.boundary()) {}

void StoreWorker::ask(std::string what,
                      std::function<std::optional<std::string>(Store&, Deadline)> call,
                      Deadline deadline, std::function<void(Answer)> then) {
  // Only the loop's thread reads it. The first of answer and deadline takes it.
  const auto waiting = std::make_shared<std::function<void(Answer)>>(std::move(then));
  const auto answer = [waiting](Answer a) {
    if (const auto tell = std::exchange(*waiting, nullptr)) tell(std::move(a));
  };
  worker_.post([this, answer, run = std::move(call), deadline, ticket = calls_.enter()] {
    Answer a;
    try {
      a.value = run(*store_, deadline);
    } catch (const std::bad_alloc&) {  // says nothing of the Store: the next generation asks anew
      a.error = std::current_exception();
      engine_.loop.fail(a.error);
    } catch (...) {  // this thread's boundary for a Store, which may be the user's
      a.error = std::current_exception();
    }
    engine_.loop.post([answer, a] { answer(a); });
  });
  engine_.loop.post_at(deadline, [answer, text = std::move(what)] {
    answer({std::nullopt, std::make_exception_ptr(Timeout(text + ": no answer by the deadline"))});
  });
}

void StoreWorker::settle(Deadline deadline) {
  calls_.close(deadline);
  calls_.open();
}

}  // namespace meshstage::replicate
