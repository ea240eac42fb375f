#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/replicate/results.hpp>

/// Stats in the two forms that monitoring systems read. There is no server:
/// CheckpointerOptions::metrics keeps a file up to date, or the program prints or writes the
/// figures when it likes.
namespace meshstage {

/// The job, rank and generation that the figures belong to.
struct StatsLabels {
  std::string job;
  int rank = 0;
  std::uint64_t generation = 0;  ///< Printed as generation_in_run().
  /// When the figures were read. Printed as "time", in seconds since 1970; not for Prometheus,
  /// which notes when it reads them.
  std::optional<std::chrono::system_clock::time_point> time = {};
};

/// One JSON object, without a line end:
/// {"time":1764334812.482,"job":"gpt2","rank":3,"generation":1,"complete":12,...}.
/// For a log, or a file of JSON lines.
[[nodiscard]] MESHSTAGE_API std::string stats_json(const Stats& stats, const StatsLabels& labels);

/// Prometheus' text format: each figure with its type, labelled with job and rank.
[[nodiscard]] MESHSTAGE_API std::string stats_prometheus(const Stats& stats,
                                                         const StatsLabels& labels);

/// Writes stats_prometheus() to a file, atomically, for node_exporter's textfile collector
/// ("meshstage-r3.prom" in the collector's folder). Who may read the file is what the umask says.
/// Throws IoError.
MESHSTAGE_API void write_stats_prometheus(const std::filesystem::path& file, const Stats& stats,
                                          const StatsLabels& labels);

}  // namespace meshstage
