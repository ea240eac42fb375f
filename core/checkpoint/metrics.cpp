#include <cstdint>
#include <sstream>
#include <string_view>

#include <nlohmann/json.hpp>

#include <meshstage/core/checkpoint/metrics.hpp>
#include <meshstage/core/checkpoint/text_file_impl.hpp>
#include <meshstage/core/generation/number.hpp>

namespace meshstage {
namespace {

/// visit(name, value, counts_up, help) for each figure.
template <class F>
void for_each_figure(const Stats& s, F&& visit) {
  visit("complete", s.complete, true, "staged steps that became complete");
  visit("failed", s.failed, true, "staged steps that failed");
  visit("skipped", s.skipped, true, "steps that this rank skipped");
  visit("persisted", s.persisted, true, "steps that this rank wrote to disk");
  visit("persist_failed", s.persist_failed, true, "steps that this rank could not write to disk");
  visit("complete_step", s.complete_step, false, "the newest complete step");
  visit("disk_step", s.disk_step, false, "the newest step on every rank's disk");
  visit("stage_seconds", s.stage_seconds, false, "time to copy the newest step");
  visit("replicate_seconds", s.replicate_seconds, false,
        "time of the newest step from stage() to complete");
  visit("persist_seconds", s.persist_seconds, false, "time to write the newest step to disk");
  visit("image_bytes", s.image_bytes, false, "size of this rank's newest image");
  visit("vault_bytes", s.vault_bytes, false, "size of all slots of this rank's vault");
  visit("replica_bytes_sent", s.replica_bytes_sent, true, "image bytes sent to holders");
  visit("replica_bytes_kept", s.replica_bytes_kept, true,
        "image bytes not sent because the holders had them");
  visit("connections", s.connections, false, "connections for images to each peer");
  visit("recovery_connections", s.recovery_connections, false,
        "connections for images to each peer in a recovery");
  visit("replica_bytes_borrowed", s.replica_bytes_borrowed, true,
        "image bytes that replicas borrow");
}

}  // namespace

std::string stats_json(const Stats& stats, const StatsLabels& labels) {
  nlohmann::ordered_json object;
  if (labels.time) {
    const auto since =
        std::chrono::floor<std::chrono::milliseconds>(labels.time->time_since_epoch());
    object["time"] = static_cast<double>(since.count()) / 1000;
  }
  object["job"] = labels.job;
  object["rank"] = labels.rank;
  object["generation"] = generation_in_run(labels.generation);
  for_each_figure(stats,
                  [&](const char* name, auto value, bool, const char*) { object[name] = value; });
  return object.dump();
}

// A job's name has no character that Prometheus would escape.
std::string stats_prometheus(const Stats& stats, const StatsLabels& labels) {
  std::ostringstream out;
  const std::string who =
      "{job=\"" + labels.job + "\",rank=\"" + std::to_string(labels.rank) + "\"} ";
  const auto put = [&](const char* name, auto value, bool counts_up, const char* help) {
    const std::string full = std::string("meshstage_") + name + (counts_up ? "_total" : "");
    out << "# HELP " << full << " " << help << "\n# TYPE " << full << " "
        << (counts_up ? "counter" : "gauge") << "\n"
        << full << who << value << "\n";
  };
  put("generation", generation_in_run(labels.generation), false, "the generation of the ranks");
  for_each_figure(stats, put);
  return out.str();
}

void write_stats_prometheus(const std::filesystem::path& file, const Stats& stats,
                            const StatsLabels& labels) {
  detail::replace_text(file, stats_prometheus(stats, labels));
}

}  // namespace meshstage
