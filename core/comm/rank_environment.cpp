#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>
#include <vector>

#include <meshstage/core/comm/rank_environment.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

using Environment = std::map<std::string, std::string>;

/// A number and the variable it came from.
struct Found {
  std::string variable;
  int value = 0;
};

/// One launcher's answer; what it does not say is empty.
struct Answer {
  std::string source;
  std::optional<Found> rank;
  std::optional<Found> size;
  std::optional<Found> local_rank;
  std::optional<Found> local_size;
};

std::string quoted(const Found& f) { return f.variable + "=" + std::to_string(f.value); }

int to_number(const std::string& variable, std::string_view text, const std::string& whole) {
  int value = 0;
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc() && stopped == end && value >= 0) return value;
  throw InvalidArgument(variable + "=" + whole + " is no number of 0 or more");
}

/// The first of `variables` that is set.
std::optional<Found> number(const Environment& environment,
                            const std::vector<std::string>& variables) {
  for (const auto& variable : variables) {
    const auto entry = environment.find(variable);
    if (entry == environment.end()) continue;
    return Found{variable, to_number(variable, entry->second, entry->second)};
  }
  return std::nullopt;
}

/// Of this node, from "4(x2),1": four on each of two nodes, one on the third.
std::optional<Found> slurm_tasks_here(const Environment& e) {
  for (const char* variable : {"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}) {
    const auto entry = e.find(variable);
    if (entry == e.end()) continue;
    const std::string& whole = entry->second;
    const auto node = number(e, {"SLURM_NODEID"});
    if (!node && whole.find(',') != std::string::npos) {
      throw InvalidArgument(std::string(variable) + "=" + whole +
                            " is set, but SLURM_NODEID is not");
    }
    int nodes = 0;  // passed so far
    for (std::string_view left = whole; !left.empty();) {
      const std::string_view part = left.substr(0, left.find(','));
      left.remove_prefix(std::min(left.size(), part.size() + 1));
      const auto bracket = part.find("(x");
      const int tasks = to_number(variable, part.substr(0, bracket), whole);
      std::string_view times = "1";
      if (bracket != std::string_view::npos) {
        times = part.ends_with(')') ? part.substr(bracket + 2, part.size() - bracket - 3) : "";
      }
      nodes += to_number(variable, times, whole);
      if (!node || node->value < nodes) return Found{variable, tasks};
    }
    throw InvalidArgument(std::string(variable) + "=" + whole + " has no entry for node " +
                          std::to_string(node ? node->value : 0) + " (SLURM_NODEID)");
  }
  return std::nullopt;
}

std::vector<Answer> answers(const Environment& e) {
  std::vector<Answer> all;
  const auto add = [&](Answer answer) {
    if (answer.rank || answer.size || answer.local_rank || answer.local_size) {
      all.push_back(std::move(answer));
    }
  };
  add({"meshstage", number(e, {"MESHSTAGE_RANK"}), number(e, {"MESHSTAGE_WORLD_SIZE"}),
       number(e, {"MESHSTAGE_LOCAL_RANK"}), number(e, {"MESHSTAGE_LOCAL_WORLD_SIZE"})});
  add({"torchrun", number(e, {"RANK"}), number(e, {"WORLD_SIZE"}), number(e, {"LOCAL_RANK"}),
       number(e, {"LOCAL_WORLD_SIZE"})});
  if (e.contains("PMI_RANK") && e.contains("PMI_SIZE") && !e.contains("OMPI_COMM_WORLD_RANK")) {
    // MPICH and its kin. Others set one of the two for purposes of their own.
    add({"mpirun", number(e, {"PMI_RANK"}), number(e, {"PMI_SIZE"}), number(e, {"MPI_LOCALRANKID"}),
         number(e, {"MPI_LOCALNRANKS"})});
  } else {
    add({"mpirun", number(e, {"OMPI_COMM_WORLD_RANK"}), number(e, {"OMPI_COMM_WORLD_SIZE"}),
         number(e, {"OMPI_COMM_WORLD_LOCAL_RANK"}), number(e, {"OMPI_COMM_WORLD_LOCAL_SIZE"})});
  }
  // Inside an allocation (salloc, sbatch) SLURM_NTASKS is set without srun; only srun numbers
  // tasks, and it does so for every program started by it. What it starts may be another launcher,
  // usually one for each node: then the ranks are that one's, and srun's numbers are the
  // launchers'.
  const bool others =
      std::any_of(all.begin(), all.end(), [](const Answer& a) { return a.source != "meshstage"; });
  if (e.contains("SLURM_PROCID") && !others) {
    add({"srun", number(e, {"SLURM_PROCID"}), number(e, {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}),
         number(e, {"SLURM_LOCALID"}), slurm_tasks_here(e)});
  }
  return all;
}

/// What a source must say, if it says one of the two.
void check_complete(const Answer& a, const char* rank_name, const char* size_name) {
  if (a.rank && !a.size) {
    throw InvalidArgument(quoted(*a.rank) + " is set, but " + size_name + " is not");
  }
  if (a.size && !a.rank) {
    throw InvalidArgument(quoted(*a.size) + " is set, but " + rank_name + " is not");
  }
  if (!a.rank && (a.local_rank || a.local_size)) {
    throw InvalidArgument(quoted(a.local_rank ? *a.local_rank : *a.local_size) + " is set, but " +
                          rank_name + " is not");
  }
}

void check_agree(const std::optional<Found>& a, const std::optional<Found>& b) {
  if (!a || !b || a->value == b->value) return;
  throw InvalidArgument(quoted(*a) + " contradicts " + quoted(*b) +
                        "; set MESHSTAGE_RANK and MESHSTAGE_WORLD_SIZE to say which is meant");
}

/// What torchrun draws for itself: "none", or a random UUID.
bool drawn_by_torchrun(const std::string& id) {
  constexpr std::string_view kShape = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
  if (id == "none") return true;
  return id.size() == kShape.size() &&
         std::equal(id.begin(), id.end(), kShape.begin(), [](char c, char shape) {
           return shape == '-' ? c == '-' : std::isxdigit(static_cast<unsigned char>(c)) != 0;
         });
}

/// What the launcher calls this start. torchrun's restart count is left out: each of its agents
/// counts by itself. A step of Slurm that another launcher was started in says nothing of ranks.
template <class Text>
std::string launch_of(const std::string& source, const Text& text) {
  std::string launch;
  if (const std::string id = text("TORCHELASTIC_RUN_ID"); source == "torchrun" && id != "none") {
    launch = id;
  } else if (source == "mpirun") {
    launch = text("PMIX_NAMESPACE");
  } else if (const std::string step = text("SLURM_STEP_ID"); source == "srun" && !step.empty()) {
    launch = text("SLURM_JOB_ID") + "." + text("SLURM_RESTART_COUNT") + "." + step;
  }
  if (launch.empty()) return launch;
  std::replace(launch.begin(), launch.end(), ' ', '_');
  return source + "-" + launch;
}

}  // namespace

RankEnvironment RankEnvironment::detect(const std::map<std::string, std::string>& environment) {
  const std::vector<Answer> all = answers(environment);
  const std::map<std::string, std::pair<const char*, const char*>> names{
      {"meshstage", {"MESHSTAGE_RANK", "MESHSTAGE_WORLD_SIZE"}},
      {"torchrun", {"RANK", "WORLD_SIZE"}},
      {"mpirun", {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}},
      {"srun", {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"}}};
  RankEnvironment result;
  result.source = "none";
  const auto text = [&](const char* variable) {
    const auto entry = environment.find(variable);
    return entry == environment.end() ? std::string() : entry->second;
  };
  result.job = text("MESHSTAGE_JOB");
  if (const std::string id = text("TORCHELASTIC_RUN_ID");
      result.job.empty() && !id.empty() && !drawn_by_torchrun(id)) {
    result.job = id;
  }
  if (const std::string id = text("SLURM_JOB_ID"); result.job.empty() && !id.empty()) {
    result.job = "slurm-" + id;
  }
  result.launch = text("MESHSTAGE_LAUNCH");
  result.take_over = text("MESHSTAGE_TAKE_OVER") == "1";
  result.store = text("MESHSTAGE_STORE");
  result.host = text("MESHSTAGE_HOST");
  result.supervisor = text("MESHSTAGE_SUPERVISOR");
  if (all.empty()) return result;

  for (const Answer& a : all) {
    const auto& [rank_name, size_name] = names.at(a.source);
    check_complete(a, rank_name, size_name);
  }
  const Answer& first = all.front();
  // MESHSTAGE_* was set by hand and beats the launchers; these must agree with each other.
  if (first.source != "meshstage") {
    for (const Answer& a : all) {
      check_agree(first.rank, a.rank);
      check_agree(first.size, a.size);
      check_agree(first.local_rank, a.local_rank);
      check_agree(first.local_size, a.local_size);
    }
  }
  result.source = first.source;
  if (result.launch.empty()) result.launch = launch_of(result.source, text);
  result.rank = first.rank->value;
  result.world_size = first.size->value;
  result.local_rank = first.local_rank ? first.local_rank->value : result.rank;
  result.local_world_size = first.local_size ? first.local_size->value : result.world_size;
  result.local_size_known = first.local_size.has_value();
  if (result.rank >= result.world_size) {
    throw InvalidArgument(quoted(*first.rank) + " does not exist with " + quoted(*first.size));
  }
  if (result.local_world_size > result.world_size || result.local_rank >= result.local_world_size) {
    throw InvalidArgument("local rank " + std::to_string(result.local_rank) + " of " +
                          std::to_string(result.local_world_size) + " contradicts " +
                          quoted(*first.size));
  }
  return result;
}

RankEnvironment RankEnvironment::detect() {
  std::map<std::string, std::string> environment;
  for (char** entry = ::environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const auto equals = text.find('=');
    if (equals != std::string::npos) environment[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return detect(environment);
}

}  // namespace meshstage
