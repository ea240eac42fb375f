#include <chrono>
#include <exception>
#include <new>
#include <system_error>
#include <utility>

#include <meshstage/core/checkpoint/metrics_writer_impl.hpp>
#include <meshstage/core/checkpoint/rank_file_impl.hpp>
#include <meshstage/core/checkpoint/text_file_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/replicate/report.hpp>

namespace meshstage::detail {
namespace {

/// True for .jsonl, false for .prom.
bool is_lines(const std::filesystem::path& file) {
  const std::string extension = file.extension().string();
  if (file.empty() || extension == ".prom") return false;
  if (extension == ".jsonl") return true;
  throw InvalidArgument("metrics \"" + file.string() +
                        "\": the name must end in .jsonl (lines of JSON) or .prom (Prometheus)");
}

}  // namespace

MetricsWriter::Following::Following(MetricsWriter& writer, std::function<Stats()> source)
    : writer_(writer) {
  writer_.worker_.post([&writer, from = std::move(source)] { writer.source_ = from; });
}

MetricsWriter::Following::~Following() {
  try {
    writer_.write_soon();
  } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch): the last figures are lost
  }
  writer_.worker_.drain();
  writer_.worker_.stop();
}

bool MetricsWriter::wanted(const CheckpointerOptions& options) {
  return !options.metrics.empty() || options.on_stats;
}

MetricsWriter::MetricsWriter(const CheckpointerOptions& options,
                             std::function<void(const std::string&)> warn)
    : file_(options.metrics.empty() ? options.metrics
                                    : rank_file(options.metrics, options.environment->rank)),
      lines_(is_lines(options.metrics)),
      job_(options.job),
      rank_(options.environment->rank),
      warn_(std::move(warn)),
      on_stats_(options.on_stats) {
  if (file_.empty()) return;
  const auto folder = std::filesystem::absolute(file_).parent_path();
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw make_error<IoError>("metrics: there is no folder " + folder.string(), {}, {},
                              file_.string());
  }
}

void MetricsWriter::note(const PointEvent& event) {
  switch (event.point) {
    case Point::kFormed:
    case Point::kRestoring:
    case Point::kComplete:
    case Point::kFailed:
    case Point::kPersisted:
    case Point::kPruned:
      generation_ = event.generation;
      return write_soon();
    default:
      return;
  }
}

void MetricsWriter::write_soon() {
  if (due_.exchange(true)) return;
  try {
    worker_.post([this] { write(); });
  } catch (...) {
    due_ = false;
    throw;
  }
}

void MetricsWriter::write() {
  due_ = false;  // before the figures are read: what changes from now on is another write's
  if (!source_) return;
  const Stats stats = source_();
  if (!file_.empty()) write_file(stats);
  if (!on_stats_) return;
  try {
    on_stats_(stats);
  } catch (...) {  // the boundary of a user's callback
    on_stats_ = {};
    warn_("on_stats threw: " + text_of(std::current_exception()) + "; it is not called again");
  }
}

void MetricsWriter::write_file(const Stats& stats) {
  const StatsLabels labels{job_, rank_, generation_, std::chrono::system_clock::now()};
  try {
    if (lines_) {
      append_line(file_, stats_json(stats, labels));
    } else {
      write_stats_prometheus(file_, stats, labels);
    }
    file_failed_ = false;
  } catch (const Error& e) {  // the next figures are tried again
    if (!std::exchange(file_failed_, true)) {
      warn_("metrics " + file_.string() + ": " + e.what());
    }
  }
}

}  // namespace meshstage::detail
