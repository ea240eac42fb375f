#pragma once
#include <memory>

#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// The wire between ranks that are threads of one process. Deterministic: nothing in it depends on
/// time, deaths and silence happen when a test says so.
///
///   InProcessFabric fabric;
///   auto transport = fabric.attach(2);    // in the thread that plays rank 2
///   fabric.kill(2);                       // from any thread
///   auto again = fabric.attach(2);        // its replacement
///
/// Data moves by one memcpy, from source to target, on the thread that posts second.
/// Threads: any. Each set of links has its own thread; a group has none. Links, groups and
/// transports keep what they need alive, so the fabric may go first.
class MESHSTAGE_API InProcessFabric {
 public:
  InProcessFabric();
  ~InProcessFabric();
  InProcessFabric(const InProcessFabric&) = delete;
  InProcessFabric& operator=(const InProcessFabric&) = delete;

  /// The transport of a process that plays `rank`. A second one for the same rank is a replacement:
  /// kill() and freeze() then mean the newest.
  [[nodiscard]] std::shared_ptr<Transport> attach(int rank);

  /// As SIGKILL: at once every transfer with this rank throws PeerLost naming it, at its peers;
  /// their links report kEndOfFile; all that the dead rank does on its transport throws Cancelled.
  void kill(int rank);
  /// As SIGSTOP: from now on nothing arrives at it and nothing leaves it (both are kept).
  void freeze(int rank);
  /// As SIGCONT: what was kept is delivered, as far as the other end is still there.
  void thaw(int rank);
  /// The silence deadline of the rank's peers passes: their links report kSilent and are dropped.
  void report_silent(int rank);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace meshstage
