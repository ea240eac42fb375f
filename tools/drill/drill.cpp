#include "tools/drill/drill.hpp"

#include <algorithm>
#include <memory>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <meshstage/core/error/error.hpp>

#include "tools/drill/compare.hpp"
#include "tools/drill/workspace.hpp"
#include "tools/trainer/model.hpp"
#include "tools/trainer/state.hpp"
#include "tools/trainer/text.hpp"

namespace meshstage::tools::drill {
namespace {

using nlohmann::ordered_json;

// Two images of each rank and, whole at most, of each of its wards, and those of a process that was
// stopped and replaced; headers and padding.
std::uint64_t vault_needed(std::uint64_t state_bytes, const Holders& holders) {
  const std::uint64_t slot = state_bytes + (std::uint64_t{1} << 17U);
  std::uint64_t images = 0;
  std::uint64_t most = 0;
  for (const auto& wards : wards_of(holders)) {
    images += 2 + 2 * wards.size();
    most = std::max<std::uint64_t>(most, 2 + 2 * wards.size());
  }
  return slot * (images + most);
}

// Of the largest job that there will be; twice, where one is started anew beside what the one
// before left.
std::uint64_t vault_needed(std::uint64_t state_bytes, const Arguments& arguments) {
  std::uint64_t most = 0;
  for (const int world : arguments.worlds()) {
    most = std::max(most, vault_needed(state_bytes, arguments.holders(world)));
  }
  return arguments.starts_are_named() ? 2 * most : most;
}

// Of one rank's tensors, without a mesh.
std::uint64_t state_bytes(const Arguments& arguments) {
  trainer::ModelSize size;
  size.vocabulary = trainer::Text::read(arguments.text, 64).vocabulary();
  const trainer::CharacterModel<float> model(size);
  return trainer::TrainingState(model, arguments.steps, 1, 0).bytes();
}

std::string megabytes(std::uint64_t bytes) {
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) * 1e-6);
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double largest(const std::vector<double>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

std::string all_faults(const Arguments& arguments) {
  std::string text;
  for (const auto& fault : arguments.faults) text += (text.empty() ? "" : " ") + fault.text();
  return text;
}

// Runs a job; when it fails, shows what the ranks said.
JobResult run_job(const JobOptions& options, Signals& signals, Display& display) {
  Job job(options, signals, display);
  try {
    return job.run();
  } catch (const JobFailed& e) {
    throw JobFailed(std::string(e.what()) + "\n" + job.tails());
  }
}

// Of all ranks; `cut`: the moments of `faulty` are cut over them.
std::optional<std::string> compare_all(int ranks, const std::filesystem::path& whole,
                                       const std::filesystem::path& faulty, bool cut) {
  std::vector<std::filesystem::path> parts;
  for (int rank = 0; cut && rank < ranks; ++rank) parts.push_back(Job::state_file(faulty, rank));
  for (int rank = 0; rank < ranks; ++rank) {
    const auto found =
        first_difference(Job::state_file(whole, rank), Job::state_file(faulty, rank), parts);
    if (found) return fmt::format("rank {}, {}", rank, *found);
  }
  return std::nullopt;
}

// Trains without checkpoints and faults: each number of ranks up to the step from which the next
// one goes on, which begins with what these saved. Leaves the final states in `job.directory`.
JobResult run_undisturbed(JobOptions& job, const std::vector<World>& worlds, Workspace& workspace,
                          Signals& signals, Display& display) {
  JobResult result;
  for (std::size_t i = 0; i < worlds.size(); ++i) {
    const bool last = i + 1 == worlds.size();
    job.until = last ? 0 : worlds[i + 1].from_step;
    if (!last && job.until == 0) continue;  // nothing was trained yet
    job.load = result.states;
    job.arguments.ranks = worlds[i].ranks;
    job.arguments.faults.clear();
    job.name = fmt::format("{}-whole-{}", workspace.name(), i);
    job.directory = workspace.make(fmt::format("whole-{}", i));
    const std::uint64_t from = job.load.empty() ? 0 : worlds[i].from_step;
    std::string part;
    if (worlds.size() > 1) {
      part = fmt::format(", steps {} to {} as {} rank{}", from + 1,
                         last ? job.arguments.steps : job.until, worlds[i].ranks,
                         worlds[i].ranks == 1 ? "" : "s");
    }
    display.line(fmt::format("undisturbed, without checkpoints{}:", part));
    result = run_job(job, signals, display);
    job.load_ranks = worlds[i].ranks;
    display.line(fmt::format("  loss {:.3f} -> {:.3f} in {:.1f} s", result.first_loss,
                             result.final_loss, result.seconds));
  }
  return result;
}

/// The hosts of the job, if they are namespaces; each has room for all images.
std::unique_ptr<hosts::NamespaceHosts> play_hosts(JobOptions& job, const Workspace& workspace) {
  if (!job.arguments.in_namespaces()) return nullptr;
  hosts::NamespaceOptions options;
  options.count = job.arguments.host_count();
  options.folder = workspace.make("hosts");
  options.memory = vault_needed(state_bytes(job.arguments), job.arguments);
  if (job.disks.size() > 1) {
    options.disks = job.disks;
    options.disk = job.disk_on_host = workspace.make("disk");
  }
  auto played = std::make_unique<hosts::NamespaceHosts>(std::move(options));
  job.hosts = played.get();
  return played;
}

std::string where_images_are(const JobOptions& job) {
  if (job.hosts != nullptr) return "each host's /dev/shm";
  return job.vaults.size() == 1 ? job.vaults[0].string() : "a directory for each host";
}

}  // namespace

Verdict run_drill(const Arguments& arguments, Display& display) {
  Signals signals;
  Workspace workspace(arguments.directory);
  try {
    JobOptions job;
    job.arguments = arguments;
    job.trainer = find_trainer();
    for (int host = 0; host < (arguments.local_disks() ? arguments.host_count() : 1); ++host) {
      job.disks.push_back(workspace.make(fmt::format("disk-{}", host)));
    }
    // Where they cannot be had the drill ends here.
    const auto played = play_hosts(job, workspace);
    display.line(fmt::format("{} ranks, {} steps on {}", arguments.ranks, arguments.steps,
                             arguments.text.string()));
    JobOptions whole = job;
    whole.hosts = nullptr;
    whole.arguments.sharded = false;
    whole.vaults = {workspace.make("whole-vault")};
    whole.disks = {workspace.make("whole-disk")};
    JobResult undisturbed;
    std::uint64_t bytes = 0;
    if (arguments.changes_world()) {
      bytes = state_bytes(arguments);  // which ranks train which steps is known afterwards
    } else {
      undisturbed = run_undisturbed(whole, {{arguments.ranks, 0}}, workspace, signals, display);
      bytes = undisturbed.state_bytes;
    }

    job.name = workspace.name();
    job.directory = workspace.make("faults");
    job.every = arguments.every;
    job.faults = arguments.faults;
    if (job.hosts == nullptr && arguments.hosts_are_apart()) {
      for (int host = 0; host < arguments.host_count(); ++host) {
        job.vaults.push_back(workspace.make(fmt::format("vault-of-host-{}", host)));
      }
    } else if (job.hosts == nullptr) {
      job.vaults = {workspace.choose_vault(vault_needed(bytes, arguments))};
    }
    display.line(fmt::format(
        "staged every {} steps (state of {}{} a rank, images in {}{}), with {}:", arguments.every,
        arguments.sharded ? "at most " : "", megabytes(bytes), where_images_are(job),
        arguments.local_disks() ? ", files in another" : "", all_faults(arguments)));
    Verdict verdict;
    verdict.result = run_job(job, signals, display);
    const JobResult& r = verdict.result;
    display.line(
        fmt::format("  loss {:.3f} -> {:.3f} in {:.1f} s | stage {:.1f} ms, replicate "
                    "{:.1f} ms, step {:.1f} ms (medians) | all vaults: {}",
                    r.first_loss, r.final_loss, r.seconds, median(r.stage_ms),
                    median(r.replicate_ms), median(r.step_ms), megabytes(r.vault_bytes)));
    if (arguments.borrow_replicated) {
      display.line(fmt::format("  replicas: {} sent, {} borrowed because other hosts have them",
                               megabytes(r.sent_bytes), megabytes(r.borrowed_bytes)));
    }
    if (arguments.changes_world()) {
      undisturbed = run_undisturbed(whole, r.worlds, workspace, signals, display);
    }
    verdict.difference =
        compare_all(r.worlds.back().ranks, undisturbed.states, r.states, arguments.sharded);
    return verdict;
  } catch (const JobFailed& e) {
    if (arguments.directory.empty()) throw;
    workspace.keep_logs();
    throw JobFailed(fmt::format("{}  logs: {}\n", e.what(), workspace.path().string()));
  }
}

std::string to_json_text(const Arguments& arguments, const Verdict& verdict) {
  const JobResult& r = verdict.result;
  ordered_json kills = ordered_json::array();
  for (const auto& death : r.deaths) {
    ordered_json one;
    to_json(one, death);
    kills.push_back(std::move(one));
  }
  const auto times = [](const std::vector<double>& values) {
    return ordered_json{{"median", median(values)}, {"max", largest(values)}};
  };
  ordered_json object{{"ranks", arguments.ranks},
                      {"steps", arguments.steps},
                      {"every", arguments.every},
                      {"device", arguments.device},
                      {"kills", kills},
                      {"identical", !verdict.difference.has_value()},
                      {"grown", r.grown},
                      {"wrong", r.wrong},
                      {"final_loss", r.final_loss},
                      {"stage_ms", times(r.stage_ms)},
                      {"replicate_ms", times(r.replicate_ms)},
                      {"step_ms", {{"median", median(r.step_ms)}}},
                      {"vault_bytes", r.vault_bytes}};
  if (arguments.over_nccl()) object["collectives"] = arguments.collectives;
  if (arguments.in_namespaces()) object["hosts"] = arguments.hosts;
  if (arguments.local_disks()) object["disks"] = arguments.disks;
  if (arguments.sharded) object["sharded"] = true;
  if (arguments.borrow_replicated) {
    object["replica_bytes"] = {{"sent", r.sent_bytes}, {"borrowed", r.borrowed_bytes}};
  }
  if (r.worlds.size() > 1) {
    ordered_json worlds = ordered_json::array();
    for (const auto& world : r.worlds) {
      worlds.push_back({{"ranks", world.ranks}, {"from_step", world.from_step}});
    }
    object["worlds"] = worlds;
  }
  if (!r.second_starts.empty()) {
    ordered_json starts = ordered_json::array();
    for (const auto& start : r.second_starts) {
      starts.push_back({{"step", start.step}, {"refused_ms", start.refused_ms}});
      if (start.at_once) starts.back()["at_once"] = true;
    }
    object["second_starts"] = starts;
  }
  return object.dump(2);
}

}  // namespace meshstage::tools::drill
