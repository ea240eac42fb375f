#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include <meshstage/core/async/worker.hpp>
#include <meshstage/core/checkpoint/metrics.hpp>
#include <meshstage/core/replicate/observer.hpp>
#include <meshstage/core/replicate/options.hpp>

namespace meshstage::detail {

/// Keeps CheckpointerOptions::metrics and ::on_stats up to date with one rank's stats().
/// Threads: note() from any. File and callback are used on a thread of its own (`ms-metrics`), so a
/// slow disk keeps nobody waiting: what changes meanwhile is in the next figures.
class MetricsWriter {
 public:
  /// Reads the figures while it lives: `source` must be callable from any thread as long. The
  /// destructor writes the figures once more, and waits until file and callback have them.
  class Following {
   public:
    Following(MetricsWriter& writer, std::function<Stats()> source);
    Following(const Following&) = delete;
    Following& operator=(const Following&) = delete;
    ~Following();

   private:
    MetricsWriter& writer_;
  };

  /// True if these options want figures anywhere.
  static bool wanted(const CheckpointerOptions& options);
  /// Throws InvalidArgument if options.metrics ends neither in .jsonl nor in .prom, and IoError if
  /// its folder does not exist. Later, `warn` gets one line when the file cannot be written, and
  /// one if the callback throws.
  MetricsWriter(const CheckpointerOptions& options, std::function<void(const std::string&)> warn);
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;
  ~MetricsWriter() = default;

  /// Points that change the figures have them written.
  void note(const PointEvent& event);

 private:
  void write_soon();
  void write();
  void write_file(const Stats& stats);

  const std::filesystem::path file_;  ///< This rank's; empty for none.
  const bool lines_;                  ///< JSON lines, else Prometheus' text.
  const std::string job_;
  const int rank_;
  const std::function<void(const std::string&)> warn_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<bool> due_{false};  ///< A write is queued that has not read the figures yet.

  // The worker's thread only, once it was started.
  std::function<Stats()> source_;
  std::function<void(const Stats&)> on_stats_;  ///< Empty once it threw.
  bool file_failed_ = false;
  Worker worker_{"ms-metrics"};  ///< Last: it uses the others.
};

}  // namespace meshstage::detail
