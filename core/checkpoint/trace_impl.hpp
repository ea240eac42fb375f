#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/replicate/observer.hpp>

namespace meshstage::detail {

/// One rank's trace, in the JSON that Chrome and Perfetto read: a line for each span (staging,
/// sending to and receiving from each peer, agreement, recovery, disk) and for each named point.
/// Times are the host's clock, so traces of several ranks may be opened together. The JSON list has
/// no closing bracket, which both readers accept: so the trace of a killed process can be read.
/// Threads: note() from any; the file is written on a thread of its own (`ms-trace`).
class Trace {
 public:
  /// "trace.json" becomes "trace.r3.json" for rank 3. Throws IoError if it cannot be written.
  Trace(const std::filesystem::path& path, int rank);
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;
  ~Trace();

  void note(const PointEvent& event);

 private:
  using Time = std::chrono::system_clock::time_point;
  /// A row of the picture; each peer has a row of its own.
  enum class Track : std::uint8_t { kRecovery = 1, kStage, kAgreement, kDisk, kSend, kReceive };
  [[nodiscard]] int row(Track track, int peer) MESHSTAGE_REQUIRES(mutex_);
  void begin(Track track, ImageId id, Time now) MESHSTAGE_REQUIRES(mutex_) {
    begun_[{track, id}] = now;
  }
  /// Writes the span from begin() to `now`; nothing if begin() was not called for it.
  void span(Track track, const char* name, const PointEvent& event, Time now)
      MESHSTAGE_REQUIRES(mutex_);
  void instant(Track track, const PointEvent& event, Time now) MESHSTAGE_REQUIRES(mutex_);
  /// Appends one event as a line of its own.
  void write(const nlohmann::ordered_json& event);

  const std::filesystem::path path_;
  const int rank_;
  Mutex mutex_;
  std::map<std::pair<Track, ImageId>, Time> begun_ MESHSTAGE_GUARDED_BY(mutex_);
  std::map<std::pair<Track, int>, int> rows_ MESHSTAGE_GUARDED_BY(mutex_);
  std::ofstream file_;  ///< The worker's, once it was opened.
  Worker worker_{"ms-trace"};
};

}  // namespace meshstage::detail
