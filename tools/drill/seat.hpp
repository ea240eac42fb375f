#pragma once
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "tools/drill/arguments.hpp"
#include "tools/drill/rank_process.hpp"

namespace meshstage::tools::drill {

/// One line of a rank's report.
struct Event {
  nlohmann::json line;
  std::string what;  // empty for a line that is none
  std::int64_t at = 0;
  int process = 0;  // of the seat's processes, which

  explicit Event(const std::string& text, int which = 0)
      : line(nlohmann::json::parse(text, nullptr, false)), process(which) {
    if (!line.is_object()) return;
    what = get<std::string>("what", "");
    at = get<std::int64_t>("at", 0);
  }

  template <class T>
  T get(const char* name, T otherwise) const {
    const auto found = line.find(name);
    return found == line.end() || found->is_null() ? otherwise : found->get<T>();
  }
  std::uint64_t step() const { return get<std::uint64_t>("step", 0); }
  /// The rank has formed a generation. Its agent passes the first point of one maybe before its
  /// trainer says "joined", and may be killed there.
  bool joins() const { return what == "joined" || what == "point"; }
  /// The rank tells its trainer that step() is safe.
  bool completes() const { return what == "point" && get<std::string>("point", "") == "complete"; }
};

/// A rank of the job, and the process that has it now.
struct Seat {
  int rank = 0;
  std::unique_ptr<RankProcess> process;
  std::vector<Fault> given;  // to the process, in this order
  int starts = 0;

  // What the process said last.
  std::uint64_t begun = 0;
  std::uint64_t trained = 0;
  std::uint64_t recovered_step = 0;
  std::uint64_t recovered_generation = 0;  // 0: not yet, or lost since
  std::int64_t recovered_at = 0;
  std::string source;
  int from_rank = -1;
  int old_world = 0;       // the number of ranks whose files it recovered, if it was another one
  std::uint64_t held = 0;  // the step before which it waits for the drill
  std::string point;
  std::string doing = "starting";
  std::string failure;
  std::uint64_t sent_bytes = 0, borrowed_bytes = 0;
  // Threads and descriptors, after its newest recovery and after its first.
  std::map<std::string, std::uint64_t> resources, resources_before;
  std::string thread_names, thread_names_before;
  bool nccl_kept_one = false;  // see Job::check_resources()
  bool joined = false;         // a generation
  bool finished = false;
  std::size_t death = 0;  // 1 + index of the death that waits for a replacement

  void forget_process() {
    sent_bytes = borrowed_bytes = 0;
    resources.clear();
    resources_before.clear();
    thread_names_before.clear();
    nccl_kept_one = false;
    begun = trained = recovered_step = recovered_generation = held = 0;
    old_world = 0;
    recovered_at = 0;
    source.clear();
    from_rank = -1;
    point.clear();
    failure.clear();
    doing = "starting";
    joined = finished = false;
  }
};

/// A process that is none of the job's by now, or never was.
struct Outsider {
  std::unique_ptr<RankProcess> process;
  std::string said;            // how it ended
  bool joined = false;         // a generation
  std::uint64_t complete = 0;  // the newest step that it called complete
  std::vector<std::string> lines;

  void listen() {
    for (auto& text : process->read_lines()) {
      const Event event(text);
      lines.push_back(std::move(text));
      if (event.what == "fenced" || event.what == "failed") {
        said = event.what + ": " + event.get<std::string>("why", "");
      }
      if (event.joins()) joined = true;
      if (event.completes()) complete = std::max(complete, event.step());
    }
  }
  /// Whether it has ended; if so, all that it said was heard. It may join, and die of its own
  /// fault, at any moment, so it is reaped first and heard then.
  bool has_ended() {
    const bool ended = process->end() || process->try_reap();
    listen();
    return ended;
  }
};

/// A stopped process whose rank another one has by now.
struct Zombie : Outsider {
  std::size_t death = 0;        // index
  int host = 0;                 // that it runs on
  bool lost_with_host = false;  // the host of namespaces was lost, and took it along
  std::int64_t woken_at = 0;
};

/// A second start of the job, beside the healthy one.
struct Second {
  Fault fault;
  std::vector<Outsider> ranks;
  std::int64_t started_at = 0;
  std::uint64_t generation = 0;  // of the healthy job
};

/// The other one of two starts that began at the same moment: one of them gets the job, whose ranks
/// sit in the seats then; the ranks of the other one end by themselves, and are these.
struct Rival {
  Fault fault;
  std::vector<Outsider> ranks;
  std::int64_t started_at = 0;
  std::uint64_t step = 0;  // before which the job waits for their end
  std::filesystem::path go_on;
};

}  // namespace meshstage::tools::drill
