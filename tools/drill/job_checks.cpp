// What must hold whatever goes wrong: the step that is recovered, what processes take and leave.
#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/vault/listing.hpp>

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

// The words of `now` that `before` lacks.
std::string new_words(const std::string& now, const std::string& before) {
  std::istringstream now_words(now), before_words(before);
  std::multiset<std::string> words{std::istream_iterator<std::string>(now_words), {}};
  for (std::string word; before_words >> word;) {
    if (const auto it = words.find(word); it != words.end()) words.erase(it);
  }
  return fmt::format("{}", fmt::join(words, " "));
}

}  // namespace

std::filesystem::path Job::log_file(int rank) const {
  return options_.directory / fmt::format("rank-{}.log", rank);
}

// Whoever lives through a death has as many threads and descriptors afterwards. Only generations
// that all ranks recovered in count: while a peer is gone its connections are, too.
// NCCL itself opens a descriptor when a process aborts its first communicator, and keeps it (seen
// on an H200; a hundred generations later there is no second one: nccl_ranks_test.cpp).
void Job::check_resources(std::uint64_t generation) {
  for (const auto& seat : seats_) {
    if (seat->thread_names_before.empty()) seat->thread_names_before = seat->thread_names;
    for (const auto& [what, now] : seat->resources) {
      auto& before = seat->resources_before.emplace(what, now).first->second;
      if (now <= before) continue;
      if (options_.arguments.over_nccl() && what == "descriptors" && now == before + 1 &&
          !std::exchange(seat->nccl_kept_one, true)) {
        before = now;
        continue;
      }
      std::string text = fmt::format("rank {} has {} {} in {}, {} before", seat->rank, now, what,
                                     generation_text(generation), before);
      if (what == "threads") {
        text += ": " + new_words(seat->thread_names, seat->thread_names_before);
      }
      result_.grown.push_back(std::move(text));
    }
  }
}

// The newest step of which some disk has an image of each rank: its own file, or a holder's.
std::uint64_t Job::newest_on_disks() const {
  const auto& a = options_.arguments;
  std::uint64_t newest = 0;
  for (const auto& [files, writers] : persisted_) {
    const auto wrote = [&of = writers](int rank) { return of.contains(rank); };
    const Holders holders = a.holders(files.first);
    int covered = 0;
    for (int owner = 0; owner < files.first; ++owner) {
      const auto& copies = holders[static_cast<std::size_t>(owner)];
      // A copy that borrows is not written.
      const bool by_holder =
          !a.borrow_replicated && std::any_of(copies.begin(), copies.end(), wrote);
      if (wrote(owner) || by_holder) ++covered;
    }
    if (covered == files.first) newest = std::max(newest, files.second);
  }
  return newest;
}

// A complete step is never lost while every vault is there, nor one on disk without them. Which
// newer step there is without some of the vaults depends on who holds what: left open here.
void Job::check_recovered(std::uint64_t generation, std::uint64_t step) {
  bool any = false, vaults_lost = false;
  for (const auto& death : result_.deaths) {
    if (death.settled) continue;
    any = true;
    vaults_lost = vaults_lost || death.fault.how == How::kLose ||
                  death.point == "finishing";  // vaults are removed then
  }
  std::uint64_t newest = vaults_lost ? newest_on_disks() : 0;
  const std::string where = vaults_lost ? "on disk for every rank" : "complete";
  if (!vaults_lost) {
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
  if (std::filesystem::exists(unused_state())) {
    result_.grown.push_back("a rank wrote files, though --persist-every is 0");
  }
  for (const auto& directory : all_vaults()) {
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

std::string Job::tails() const {
  std::string text;
  for (const auto& seat : seats_) {
    const std::string lines = last_lines(log_file(seat->rank), 5);
    if (!lines.empty()) text += fmt::format("  rank {} said last:\n{}", seat->rank, lines);
  }
  return text;
}

}  // namespace meshstage::tools::drill
