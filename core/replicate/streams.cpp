#include <meshstage/core/replicate/streams.hpp>

#include <algorithm>
#include <utility>

namespace meshstage::replicate {

Streams::Streams(Engine& engine) : engine_(engine) {
  for (const int peer : engine.config->data_peers) {
    (void)worker(send_, "ms-send", peer);
    (void)worker(receive_, "ms-recv", peer);
  }
}

Worker& Streams::worker(Workers& workers, const char* name, int peer) {
  auto& found = workers[peer];
  if (!found) found = std::make_unique<Worker>(name, engine_.boundary());
  return *found;
}

void Streams::send(Outgoing stream, std::function<void()> done) {
  auto ticket = engine_.scope.enter();
  if (!ticket) return done();
  engine_.gate.sending_begins();
  ++active_;
  Worker& thread = worker(send_, "ms-send", stream.to);
  thread.post([this, what = std::make_shared<const Outgoing>(std::move(stream)),
               end = std::move(done), ticket]() mutable {
    send_stream(engine_, ticket, *what);
    what.reset();  // with its lease on the sent image
    engine_.to_loop(ticket, [this, tell = std::move(end)] { sent(tell); });
  });
}

void Streams::sent(const std::function<void()>& tell) {
  engine_.gate.sending_ends();
  ended(tell);
}

void Streams::receive(Arriving stream, Arrived arrived, Failed failed) {
  auto ticket = engine_.scope.enter();
  if (!ticket) return;
  ++active_;
  worker(receive_, "ms-recv", stream.from)
      .post([this, what = std::move(stream), ok = std::move(arrived), bad = std::move(failed),
             ticket] {
        receive_stream(engine_, ticket, what, ok, bad);
        engine_.to_loop(ticket, [this] { ended(); });
      });
}

void Streams::drain(int from, const exchange::StreamStart& start) {
  auto ticket = engine_.scope.enter();
  if (!ticket) return;
  ++active_;
  worker(receive_, "ms-recv", from).post([this, from, start, ticket] {
    drain_stream(engine_, ticket, from, start);
    engine_.to_loop(ticket, [this] { ended(); });
  });
}

void Streams::when_idle(std::function<void()> task) {
  if (active_ == 0) return task();
  idle_ = std::move(task);
}

void Streams::ended(const std::function<void()>& tell) {
  --active_;
  if (tell) tell();
  if (active_ > 0 || !idle_) return;
  std::exchange(idle_, nullptr)();
}

void Streams::leave() {
  active_ = 0;
  idle_ = nullptr;
  const auto& peers = engine_.config->data_peers;
  for (auto* const workers : {&send_, &receive_}) {
    std::erase_if(*workers, [&](const auto& entry) {
      return !std::binary_search(peers.begin(), peers.end(), entry.first);
    });
  }
}

}  // namespace meshstage::replicate
