#include <unistd.h>

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

/// The first of `variables` that is set.
std::optional<Found> number(const Environment& environment,
                            const std::vector<std::string>& variables, bool leading_part = false) {
  for (const auto& variable : variables) {
    const auto entry = environment.find(variable);
    if (entry == environment.end()) continue;
    std::string text = entry->second;
    // SLURM_TASKS_PER_NODE is "4" or "4(x2)" if all nodes are alike, else a list.
    if (leading_part) text = text.substr(0, text.find('('));
    if (leading_part && text.find(',') != std::string::npos) return std::nullopt;
    int value = 0;
    const char* const end = text.data() + text.size();
    const auto [stopped, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || stopped != end || value < 0) {
      throw InvalidArgument(variable + "=" + entry->second + " is no rank or number of ranks");
    }
    return Found{variable, value};
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
  // tasks, and it does so for every program started by it, mpirun's daemons included.
  const bool others = !all.empty();
  if (e.contains("SLURM_PROCID") && !(others && e.contains("OMPI_COMM_WORLD_RANK"))) {
    add({"srun", number(e, {"SLURM_PROCID"}), number(e, {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}),
         number(e, {"SLURM_LOCALID"}),
         number(e, {"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}, true)});
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
  result.store = text("MESHSTAGE_STORE");
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
  result.rank = first.rank->value;
  result.world_size = first.size->value;
  result.local_rank = first.local_rank ? first.local_rank->value : result.rank;
  result.local_world_size = first.local_size ? first.local_size->value : result.world_size;
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
