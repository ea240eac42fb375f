#include <meshstage/core/replicate/store_worker.hpp>

#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {

StoreWorker::StoreWorker(Engine& engine, std::shared_ptr<Store> store)
    : engine_(engine), store_(std::move(store)), worker_("ms-store", engine.boundary()) {}

void StoreWorker::ask(std::string what, StoreCall call, Deadline deadline,
                      std::function<void(Answer)> then) {
  // Only the loop's thread reads it. The first of answer and deadline takes it.
  const auto waiting = std::make_shared<std::function<void(Answer)>>(std::move(then));
  const auto answer = [waiting](Answer a) {
    if (const auto tell = std::exchange(*waiting, nullptr)) tell(std::move(a));
  };
  worker_.post([this, answer, run = std::move(call), deadline, ticket = calls_.enter()] {
    const Answer a = answer_of(*store_, run, deadline, engine_.loop);
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
