// What must hold whatever goes wrong: the step that is recovered, what processes take and leave.
#include <algorithm>
#include <fstream>
#include <utility>

#include <fmt/format.h>

#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/vault/listing.hpp>

#include "tools/drill/hosts.hpp"
#include "tools/drill/job.hpp"

namespace meshstage::tools::drill {
namespace {

std::string last_lines(const std::filesystem::path& file, std::size_t count) {
  std::ifstream in(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  std::string text;
  for (std::size_t i = lines.size() - std::min(count, lines.size()); i < lines.size(); ++i) {
    text += "    " + lines[i] + "\n";
  }
  return text;
}

}  // namespace

std::filesystem::path Job::log_file(int rank) const {
  return options_.directory / fmt::format("rank-{}.log", rank);
}

/// Of the host that the rank sits on.
const std::filesystem::path& Job::vault_of(int rank) const {
  if (options_.vaults.size() == 1) return options_.vaults.front();  // all hosts see it
  return options_.vaults[static_cast<std::size_t>(host_of(options_.arguments, rank, moved_))];
}

// Whoever lives through a death has as many threads and descriptors afterwards. Only generations
// that all ranks recovered in count: while a peer is gone its connections are, too.
// NCCL itself opens a descriptor when a process aborts its first communicator, and keeps it (seen
// on an H200; a hundred generations later there is no second one: nccl_ranks_test.cpp).
void Job::check_resources(std::uint64_t generation) {
  for (const auto& seat : seats_) {
    for (const auto& [what, now] : seat->resources) {
      auto& before = seat->resources_before.emplace(what, now).first->second;
      if (now <= before) continue;
      if (options_.arguments.over_nccl() && what == "descriptors" && now == before + 1 &&
          !std::exchange(seat->nccl_kept_one, true)) {
        before = now;
        continue;
      }
      result_.grown.push_back(fmt::format("rank {} has {} {} in {}, {} before", seat->rank, now,
                                          what, generation_text(generation), before));
    }
  }
}

// A complete step is never lost while every vault is there, nor one on every disk without them.
// Which step is the newest without some of the vaults depends on who holds what: left open here.
void Job::check_recovered(std::uint64_t generation, std::uint64_t step) {
  bool any = false, vaults_lost = false, all_lost = false, finished = false;
  for (const auto& death : result_.deaths) {
    if (death.settled) continue;
    any = true;
    const bool lost = death.fault.how == How::kLose;
    vaults_lost = vaults_lost || lost;
    all_lost = all_lost || (lost && !death.fault.rank);
    finished = finished || death.point == "finishing";  // vaults are removed then
  }
  std::uint64_t newest = 0;
  std::string where = "complete";
  if (all_lost || finished) {
    where = "on every rank's disk";
    for (const auto& [files, ranks] : persisted_) {
      if (ranks.size() == static_cast<std::size_t>(files.first)) {
        newest = std::max(newest, files.second);
      }
    }
  } else if (!vaults_lost) {
    for (const auto& [of, complete] : complete_) {
      if (of != generation) newest = std::max(newest, complete);
    }
  }
  if (any && step < newest) {
    result_.wrong.push_back(
        fmt::format("step {} was recovered, though step {} was {}", step, newest, where));
  }
  // What was newer is no step of this job any more.
  const std::uint64_t since = complete_[generation];
  complete_ = {{generation, std::max(since, step)}};
  std::erase_if(persisted_, [&](const auto& files) {
    return files.first.second > step && files.first.second > since;
  });
}

// Who trained the steps up to the one that was recovered, and who trains on.
void Job::take_world(std::uint64_t step) {
  auto& worlds = result_.worlds;
  const int world = static_cast<int>(seats_.size());
  const int of = seats_.front()->old_world > 0 ? seats_.front()->old_world : world;
  const auto theirs = std::find_if(worlds.rbegin(), worlds.rend(), [&](const World& w) {
    return w.ranks == of && w.from_step <= step;
  });
  if (theirs != worlds.rend()) {
    worlds.erase(theirs.base(), worlds.end());
  } else {
    worlds.push_back({of, step});
  }
  if (of != world) worlds.push_back({world, step});
}

// All have finished: what is left of the job in shared memory nobody would ever remove.
void Job::check_vaults() {
  for (const auto& directory : options_.vaults) {
    const bool in_reach = std::any_of(seats_.begin(), seats_.end(), [&](const auto& seat) {
      return vault_of(seat->rank) == directory;
    });
    if (!in_reach) continue;  // a host that the job left: no rank sees what lies there
    for (const auto& vault : list_vaults(directory)) {
      if (vault.job != options_.name) continue;
      const auto& deaths = result_.deaths;
      const bool killed_at_the_end = std::any_of(deaths.begin(), deaths.end(), [&](const auto& d) {
        return d.over && d.fault.rank == vault.rank;  // it could not; the workspace removes it
      });
      if (killed_at_the_end) continue;
      result_.grown.push_back(fmt::format(
          "rank {} left a vault of {} bytes behind (incarnation {}); it said last:\n{}", vault.rank,
          vault.bytes, vault.incarnation, last_lines(log_file(vault.rank), 2)));
    }
  }
}

void Job::wipe_vault(std::optional<int> rank) const {
  for (const auto& directory : options_.vaults) {
    if (rank && directory != vault_of(*rank)) continue;
    for (const auto& vault : list_vaults(directory)) {
      if (vault.job == options_.name && (!rank || vault.rank == *rank) && !vault.owner_alive) {
        remove_vault(vault);
      }
    }
  }
}

std::string Job::tails() const {
  std::string text;
  for (const auto& seat : seats_) {
    const std::string lines = last_lines(log_file(seat->rank), 5);
    if (!lines.empty()) text += fmt::format("  rank {} said last:\n{}", seat->rank, lines);
  }
  return text;
}

}  // namespace meshstage::tools::drill
