#pragma once
#include <functional>
#include <map>
#include <memory>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/receiving.hpp>
#include <meshstage/core/replicate/sending.hpp>

namespace meshstage::replicate {

/// Has images moved: for each data peer, and for each rank at the other end of a bridge, one thread
/// sends (`ms-send`) and one receives (`ms-recv`). Streams knows neither rounds nor recoveries. The
/// loss of a peer in a transfer ends the generation.
/// Threads: the loop's. `done` and `failed` run there, too.
class Streams {
 public:
  explicit Streams(Engine& engine);

  /// `done` runs when the stream does not read the memory any more, however the stream ended.
  void send(Outgoing stream, std::function<void()> done);

  using Failed = NotArrived;
  void receive(Arriving stream, Arrived arrived, Failed failed);
  /// Receives and drops the pieces of an image that this rank does not want any more.
  void drain(int from, const exchange::StreamStart& start);
  /// Runs `task` when no stream is left; at once if there is none.
  void when_idle(std::function<void()> task);
  /// Called when the generation was left, so no stream is left either.
  void leave();

 private:
  /// A sending stream is over.
  void sent(const std::function<void()>& tell);
  /// A stream is over: runs `tell`, and then the task that waited for the last stream.
  void ended(const std::function<void()>& tell = {});
  using Workers = std::map<int, std::unique_ptr<Worker>>;
  Worker& worker(Workers& workers, const char* name, int peer);

  Engine& engine_;
  int active_ = 0;
  std::function<void()> idle_;
  Workers send_, receive_;
};

}  // namespace meshstage::replicate
