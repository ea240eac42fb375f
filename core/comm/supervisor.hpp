#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Reports of a rank to the program that started it (`meshstage run`). The program distinguishes by
/// them a rank that dies in a running job from one that cannot even start, and a rank that is slow
/// from one whose process hangs. Each report is one datagram to the Unix socket that
/// MESHSTAGE_SUPERVISOR names:
///
/// - "joined RANK GENERATION": the rank became part of a generation;
/// - "forming RANK TOKEN": the rank waits for the others while a generation is formed;
/// - "alive RANK TOKEN": the process lives, and the rank does not wait in that way;
/// - "left RANK TOKEN": the process reports no more, however long it lives.
///
/// Each reporter draws a TOKEN, by which the reader recognizes reports of a rank's older process.
/// "forming" or "alive" comes again every `interval`. A reader ignores a report with a first word
/// that it does not know. A report is lost where nobody reads: the job does not depend on it. The
/// idea is systemd's sd_notify().
///
/// Threads: one of its own (`ms-report`), none if the path is empty. Calls come from any thread.
class MESHSTAGE_API SupervisorReports {
 public:
  /// Reports nothing before the first call below, and nothing at all if `path` is empty.
  SupervisorReports(std::string path, int rank,
                    std::chrono::milliseconds interval = std::chrono::milliseconds(1000));
  SupervisorReports(const SupervisorReports&) = delete;
  SupervisorReports& operator=(const SupervisorReports&) = delete;
  /// Calls left(). Does nothing in a forked child.
  ~SupervisorReports();

  /// These three never block.
  void forming() noexcept;
  void joined(std::uint64_t generation) noexcept;
  void alive() noexcept;
  /// Ends the reports until another call. Waits for 0.2 s at most if the socket is full, because a
  /// process that ends its reports without this one looks like one that hangs.
  void left() noexcept;

 private:
  struct State;
  const ProcessOrigin origin_;
  std::unique_ptr<State, DeleteHere> state_;  ///< Null if the path is empty.
};

}  // namespace meshstage
