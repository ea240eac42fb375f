#include "tools/run/environment.hpp"

#include <unistd.h>

#include <algorithm>
#include <string_view>

namespace meshstage::tools::run {

Environment rank_environment(const Launch& launch, int local_rank, Environment inherited) {
  const Place& place = launch.place;
  std::erase_if(inherited, [](const auto& variable) {
    const std::string_view name = variable.first;
    return name.starts_with("OMPI_COMM_WORLD_") || name.starts_with("PMI_") ||
           name == "MPI_LOCALRANKID" || name == "MPI_LOCALNRANKS" || name == "SLURM_PROCID" ||
           name == "SLURM_LOCALID";
  });
  const std::string rank = std::to_string(place.first_rank + local_rank);
  const std::string world_size = std::to_string(place.world_size);
  const std::string local = std::to_string(local_rank);
  const std::string local_world_size = std::to_string(place.ranks);
  const auto set = [&](const char* name, const std::string& value) { inherited[name] = value; };
  set("MESHSTAGE_RANK", rank);
  set("MESHSTAGE_WORLD_SIZE", world_size);
  set("MESHSTAGE_LOCAL_RANK", local);
  set("MESHSTAGE_LOCAL_WORLD_SIZE", local_world_size);
  set("MESHSTAGE_JOB", launch.job);
  if (!launch.name.empty()) inherited.try_emplace("MESHSTAGE_LAUNCH", launch.name);
  set("MESHSTAGE_SUPERVISOR", launch.supervisor);
  if (!launch.store.empty()) set("MESHSTAGE_STORE", launch.store);
  if (!place.name.empty()) inherited.try_emplace("MESHSTAGE_HOST", place.name);
  set("RANK", rank);
  set("WORLD_SIZE", world_size);
  set("LOCAL_RANK", local);
  set("LOCAL_WORLD_SIZE", local_world_size);
  set("GROUP_RANK", std::to_string(place.host));
  set("MASTER_ADDR", place.first_host.empty() ? "127.0.0.1" : place.first_host);
  set("MASTER_PORT", std::to_string(launch.master_port));
  inherited.try_emplace("OMP_NUM_THREADS",
                        std::to_string(std::max(1, launch.processors / place.ranks)));
  return inherited;
}

Environment own_environment() {
  Environment all;
  for (char** entry = ::environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const auto equals = text.find('=');
    if (equals == std::string_view::npos) continue;
    all.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return all;
}

}  // namespace meshstage::tools::run
