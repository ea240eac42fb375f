#include <meshstage/mesh/survive.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <ostream>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/text.hpp>
#include "tools/mesh/json_out.hpp"
#include "tools/mesh/options.hpp"
#include "tools/mesh/words.hpp"

namespace meshstage::tools {
namespace {

constexpr std::size_t kNames = 8;
constexpr std::size_t kTensors = 64;

std::string how_word(Knowledge how) {
  switch (how) {
    case Knowledge::kProven:
      return "proven";
    case Knowledge::kEnumerated:
      return "enumerated";
    case Knowledge::kNotEnumerated:
      break;
  }
  return "not enumerated";
}

std::vector<std::string> names_of(const FailureDomains& domains, DomainLevel level,
                                  const std::vector<int>& set) {
  std::vector<std::string> out;
  for (const int d : set) out.push_back(domains.domain_name(d, level));
  return out;
}

void survival_json(JsonOut& json, const FailureDomains& domains, DomainLevel level,
                   const Survival& s) {
  json.key("always_survived").value(std::int64_t{s.always_survived});
  json.key("first_lost").list(names_of(domains, level, s.first_lost));
  json.key("lost_rank");
  if (s.lost_rank) {
    json.value(std::int64_t{*s.lost_rank});
  } else {
    json.null();
  }
  json.key("counts").begin_list();
  for (const LossCount& c : s.counts) {
    json.begin_object();
    json.key("lost").value(std::int64_t{c.lost});
    json.key("sets").value(c.sets);
    json.key("survived");
    if (c.how == Knowledge::kNotEnumerated) {
      json.null();
    } else {
      json.value(c.survived);
    }
    json.key("how").value(how_word(c.how));
    json.end_object();
  }
  json.end_list();
}

void report_json(const MeshDescription& job, DomainLevel level, const SurviveReport& report,
                 int always, std::ostream& out) {
  JsonOut json(out);
  json.begin_object();
  json.key("lose").value(to_string(level));
  json.key("domains").value(std::int64_t{report.domains});
  json.key("partners").value(partners_words(job));
  json.key("borrow_replicated").value(job.borrow_replicated);
  json.key("always_survived").value(std::int64_t{always});
  json.key("ranks").begin_object();
  survival_json(json, job.domains, level, report.ranks);
  json.end_object();
  json.key("tensors").begin_list();
  for (const Survival& s : report.tensors) {
    json.begin_object();
    json.key("name").value(s.name);
    survival_json(json, job.domains, level, s);
    json.end_object();
  }
  json.end_list();
  json.end_object();
  json.finish();
}

std::string first_words(const FailureDomains& domains, DomainLevel level, const Survival& s) {
  if (s.first_lost.empty()) return "nothing to lose";
  std::vector<int> first = s.first_lost;
  const std::size_t all = first.size();
  if (all > kNames) first.resize(kNames);
  return fmt::format("{}{}", fmt::join(names_of(domains, level, first), " + "),
                     all > kNames ? fmt::format(" + {} more", all - kNames) : std::string());
}

std::string survived_words(const Survival& s, int domains) {
  return s.first_lost.empty() || s.always_survived >= domains ? "any"
                                                              : std::to_string(s.always_survived);
}

void report_table(const MeshDescription& job, DomainLevel level, const SurviveReport& report,
                  int always, std::ostream& out) {
  const std::string noun(to_string(level));
  out << text::count(job.domains.world_size(), "rank");
  if (level != DomainLevel::kRank) out << " in " << text::count(report.domains, noun);
  out << ": " << partners_words(job) << "\n\n";
  Table table({"state", fmt::format("{}s always survived", noun), "first loss that is fatal",
               "a rank whose part is lost"});
  const auto row = [&](const std::string& name, const Survival& s) {
    table.add({name, survived_words(s, report.domains), first_words(job.domains, level, s),
               s.lost_rank ? std::to_string(*s.lost_rank) : "-"});
  };
  row(job.borrow_replicated ? "each rank's image" : "each rank's own", report.ranks);
  for (std::size_t i = 0; i < std::min(report.tensors.size(), kTensors); ++i) {
    row(report.tensors[i].name, report.tensors[i]);
  }
  out << table.str();
  if (report.tensors.size() > kTensors) {
    out << fmt::format("  ... and {} more tensors: --json lists all\n",
                       report.tensors.size() - kTensors);
  }
  out << "\n";
  Table counts(
      {fmt::format("{}s lost at once", noun), "of all such losses", "survived", "known by"});
  for (const LossCount& c : report.ranks.counts) {
    counts.add({std::to_string(c.lost), fmt::format("{:.15g}", c.sets),
                c.how == Knowledge::kNotEnumerated ? "?" : fmt::format("{:.15g}", c.survived),
                c.how == Knowledge::kProven       ? "argument"
                : c.how == Knowledge::kEnumerated ? "enumeration"
                                                  : "not enumerated: too many"});
  }
  out << counts.str() << "\n";
  const bool some_survive_more =
      std::any_of(report.tensors.begin(), report.tensors.end(),
                  [&](const Survival& s) { return s.always_survived > always; });
  if (job.borrow_replicated) {
    out << "copies borrow the tensors that another host has too: recover() takes those from "
           "there\n";
  }
  if (some_survive_more) {
    out << "a tensor that survives more is still in some rank's memory; recover() needs every "
           "rank's whole image\n";
  }
  if (always >= report.domains) {
    out << "there is nothing to lose\n";
  } else if (always == 0) {
    out << fmt::format("not every loss of a single {} is survived\n", noun);
  } else {
    out << fmt::format("every loss of {} is survived; not every loss of {}\n",
                       text::count(always, noun), always + 1);
  }
}

}  // namespace

int mesh_survive(const SurviveWords& options, std::ostream& out) {
  const DomainLevel level = parse_domain_level(options.lose);
  const MeshDescription job = read_job(options.job);
  SurviveOptions how;
  how.level = level;
  if (job.borrow_replicated) how.borrowed = DomainLevel::kHost;
  const SurviveReport report = survive(job.domains, job.holders, job.mesh, job.tensors, how);
  int always = report.ranks.always_survived;
  for (const Survival& s : report.tensors) always = std::min(always, s.always_survived);
  if (options.json) {
    report_json(job, level, report, always, out);
  } else {
    report_table(job, level, report, always, out);
  }
  const bool negative = options.require >= 0 && always < options.require;
  if (negative && !options.json) {
    out << fmt::format("NOT ENOUGH: {} {} required\n", options.require,
                       options.require == 1 ? "is" : "are");
  }
  return negative ? 1 : 0;
}

}  // namespace meshstage::tools
