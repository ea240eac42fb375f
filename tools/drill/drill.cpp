#include "tools/drill/drill.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <meshstage/core/error/error.hpp>

#include "tools/drill/compare.hpp"
#include "tools/drill/workspace.hpp"

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

std::optional<std::string> compare_all(int ranks, const std::filesystem::path& whole,
                                       const std::filesystem::path& faulty) {
  for (int rank = 0; rank < ranks; ++rank) {
    const auto found =
        first_difference(Job::state_file(whole, rank), Job::state_file(faulty, rank));
    if (found) return fmt::format("rank {}, {}", rank, *found);
  }
  return std::nullopt;
}

}  // namespace

Verdict run_drill(const Arguments& arguments, Display& display) {
  Signals signals;
  Workspace workspace(arguments.directory);
  try {
    JobOptions job;
    job.arguments = arguments;
    job.trainer = find_trainer();
    job.name = workspace.name() + "-whole";
    job.directory = workspace.make("whole");
    job.vault = workspace.make("whole-vault");
    display.line(fmt::format("{} ranks, {} steps on {}", arguments.ranks, arguments.steps,
                             arguments.text.string()));
    display.line("undisturbed, without checkpoints:");
    const JobResult whole = run_job(job, signals, display);
    display.line(fmt::format("  loss {:.3f} -> {:.3f} in {:.1f} s", whole.first_loss,
                             whole.final_loss, whole.seconds));

    const auto whole_directory = job.directory;
    job.name = workspace.name();
    job.directory = workspace.make("faults");
    job.every = arguments.every;
    job.faults = arguments.faults;
    job.vault = workspace.choose_vault(vault_needed(whole.state_bytes, arguments.holders()));
    display.line(fmt::format(
        "staged every {} steps (state of {} a rank, images in {}), with {}:", arguments.every,
        megabytes(whole.state_bytes), job.vault.string(), all_faults(arguments)));
    Verdict verdict;
    verdict.result = run_job(job, signals, display);
    const JobResult& r = verdict.result;
    display.line(
        fmt::format("  loss {:.3f} -> {:.3f} in {:.1f} s | stage {:.1f} ms, replicate "
                    "{:.1f} ms, step {:.1f} ms (medians) | all vaults: {}",
                    whole.first_loss, r.final_loss, r.seconds, median(r.stage_ms),
                    median(r.replicate_ms), median(r.step_ms), megabytes(r.vault_bytes)));
    if (arguments.spare_replicated) {
      display.line(fmt::format("  replicas: {} sent, {} borrowed because other hosts have them",
                               megabytes(r.sent_bytes), megabytes(r.borrowed_bytes)));
    }
    verdict.difference = compare_all(arguments.ranks, whole_directory, job.directory);
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
                      {"final_loss", r.final_loss},
                      {"stage_ms", times(r.stage_ms)},
                      {"replicate_ms", times(r.replicate_ms)},
                      {"step_ms", {{"median", median(r.step_ms)}}},
                      {"vault_bytes", r.vault_bytes}};
  if (arguments.spare_replicated) {
    object["replica_bytes"] = {{"sent", r.sent_bytes}, {"borrowed", r.borrowed_bytes}};
  }
  return object.dump(2);
}

}  // namespace meshstage::tools::drill
