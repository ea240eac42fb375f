#pragma once
#include <memory>

#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// The wire between ranks that are threads of one process. Deterministic: nothing depends on time,
/// and deaths and silence happen when a test asks for them.
///
///   InProcessFabric fabric;
///   auto transport = fabric.attach(2);    // in the thread that plays rank 2
///   fabric.kill(2);                       // from any thread
///   auto again = fabric.attach(2);        // its replacement
///
/// Data moves by one memcpy, from source to target, on the thread that posts second.
/// Threads: any. Each set of links has its own thread; a group has none. The fabric may be
/// destroyed before its links, groups and transports, which keep alive what they need.
class MESHSTAGE_API InProcessFabric {
 public:
  InProcessFabric();
  ~InProcessFabric();
  InProcessFabric(const InProcessFabric&) = delete;
  InProcessFabric& operator=(const InProcessFabric&) = delete;

  /// The transport of a process that plays `rank`. A second transport for the same rank is a
  /// replacement: kill() and freeze() then mean the newest.
  [[nodiscard]] std::shared_ptr<Transport> attach(int rank);

  /// Acts like SIGKILL, at once: transfers of its peers with this rank throw PeerLost naming it,
  /// and the peers' links report kEndOfFile. Every call of the dead rank on its transport throws
  /// Cancelled.
  void kill(int rank);
  /// Acts like SIGSTOP: from now on nothing reaches the rank and nothing leaves it (the fabric
  /// keeps both).
  void freeze(int rank);
  /// Acts like SIGCONT: the fabric delivers what it kept, as far as the other end is still there.
  void thaw(int rank);
  /// Lets the silence deadline of the rank's peers pass: their links to it report kSilent and are
  /// dropped.
  void report_silent(int rank);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace meshstage
