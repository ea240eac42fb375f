#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Threads that help with jobs of many tasks, for example a copy in pieces.
///
///     Crew crew("ms-copy", 4);
///     crew.run(pieces.size(), [&](std::size_t i) { copy(pieces[i]); });
///
/// The thread that calls run() works too, so a job also ends where no helper is free or none can be
/// started. Helpers start with the first job that has work for them, take no signals (see Thread),
/// and sleep while there is no job. A forked child has no helpers: run() does every task itself
/// there.
/// Threads: any may call run(), several at once: the helpers serve the oldest job first.
class MESHSTAGE_API Crew {
 public:
  /// `hands`: the largest number of threads that work on one job, the caller of run() included; at
  /// least 1. `name`: shows in debuggers and `ps`, with a number behind it (15 characters in all).
  Crew(std::string name, unsigned hands);
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  /// No job may be running.
  ~Crew();

  [[nodiscard]] unsigned hands() const noexcept;

  /// Calls task(i) once for each i below `count`, from at most `hands` threads (0: as many as the
  /// crew has). Tasks begin in ascending order. Returns when all tasks are done; the caller then
  /// sees what they stored. If a task throws, no further task begins, and run() throws the first
  /// such exception when no task runs any more.
  void run(std::size_t count, const std::function<void(std::size_t)>& task, unsigned hands = 0);

 private:
  class Impl;
  std::unique_ptr<Impl, DeleteHere> impl_;
};

}  // namespace meshstage
