// meshstage doctor: what would keep a job from running here, and what to do about it.
#include "tools/snapshot/doctor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <ostream>
#include <string_view>
#include <vector>

#include <meshstage/core/comm/rank_environment.hpp>
#include <meshstage/core/comm/redis/store.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/environment.hpp>
#include <meshstage/core/vault/vault.hpp>

#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

using Level = Check::Level;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20U;
/// Two own images, two of the ward.
constexpr std::uint64_t kImagesPerRank = 4;
constexpr std::uint64_t kFewFiles = 1024;

/// The names of the variables that mean something.
std::vector<std::string_view> known_variables() {
  std::vector<std::string_view> names;
  for (const auto& variable : environment_variables()) names.push_back(variable.name);
  return names;
}

std::string limit_text(std::uint64_t limit) {
  return limit == HostFacts::kUnlimited ? "unlimited" : size_text(limit);
}

Check memory(const HostFacts& f) {
  const auto& m = f.room.memory;
  Check c{.name = "memory",
          .text = fmt::format("{} of {} available", size_text(m.mem_available),
                              size_text(f.memory_total)),
          .remedy = {}};
  if (m.mem_available < f.memory_total / 10) {
    c.level = Level::kWarning;
    c.remedy =
        "less than a tenth is free: each rank needs four times its state, less what copies borrow";
  }
  return c;
}

Check control_group(const HostFacts& f) {
  const auto& m = f.room.memory;
  if (!m.cgroup_headroom) return {.name = "control group", .text = "no memory limit", .remedy = {}};
  Check c{.name = "control group",
          .text = fmt::format("{} of memory left to {}", size_text(*m.cgroup_headroom),
                              printable(m.cgroup)),
          .remedy = {}};
  if (m.cgroup_binds() && *m.cgroup_headroom < m.mem_available / 10) {
    c.level = Level::kWarning;
    c.remedy = "raise the limit: docker run --memory, resources.limits.memory, MemoryMax=";
  }
  return c;
}

Check vault_place(const HostFacts& f) {
  const auto where = printable(f.room.directory.native(), 1000);
  const bool shm = f.room.directory == "/dev/shm";
  Check c{.name = shm ? "shared memory" : "vault", .text = {}, .remedy = {}};
  if (f.vault_is_other) {
    c.level = Level::kProblem;
    c.text = where + " is not a directory";
    c.remedy = "name a directory";
    return c;
  }
  if (!f.vault_exists) {
    c.level = Level::kProblem;
    c.text = where + " does not exist";
    c.remedy = shm ? "mount -t tmpfs tmpfs /dev/shm" : "make the directory";
    return c;
  }
  c.text = fmt::format("{}: {} of {} free, {}", where, size_text(f.room.space.available),
                       size_text(f.room.space.total),
                       f.room.space.in_memory ? "in memory" : "on a disk");
  if (!f.vault_writable) {
    c.level = Level::kProblem;
    c.text += "; not writable";
    c.remedy = "give this user the right to write there, or use another directory";
  } else if (!f.room.space.in_memory) {
    c.level = Level::kWarning;
    c.remedy = "every staging writes there: use /dev/shm or mount a tmpfs";
  } else if (f.room.space.total <= 64 * kMiB) {
    c.level = Level::kWarning;
    c.remedy =
        "a container's default; docker run --shm-size=16g (or --ipc=host); Kubernetes: an "
        "emptyDir with medium: Memory at /dev/shm";
  }
  return c;
}

Check room(const HostFacts& f, const DoctorOptions& options) {
  const auto bytes = kImagesPerRank * options.state_bytes;
  Check c{.name = "room", .text = {}, .remedy = {}};
  c.text = fmt::format("{} of {} state need{} {}",
                       count_text(static_cast<std::uint64_t>(options.ranks), "rank"),
                       size_text(options.state_bytes), options.ranks == 1 ? "s" : "",
                       size_text(bytes * static_cast<std::uint64_t>(options.ranks)));
  try {
    check_room({.what = "the vault", .bytes_per_rank = bytes, .local_ranks = options.ranks},
               f.room);
  } catch (const OutOfMemory& e) {
    c.level = Level::kProblem;
    c.remedy = printable(e.what(), 1000);
  }
  return c;
}

Check huge_pages(const HostFacts& f) {
  Check c{.name = "huge pages", .text = {}, .remedy = {}};
  if (f.huge_pages.empty()) {
    c.text = "this kernel has no transparent huge pages";
    return c;
  }
  c.text = fmt::format("transparent huge pages: {}, in shared memory: {}", f.huge_pages,
                       f.shared_huge_pages.empty() ? "no" : f.shared_huge_pages);
  if (f.huge_pages == "never") {
    c.level = Level::kWarning;
    c.remedy =
        "a first stage takes twice as long: echo madvise > "
        "/sys/kernel/mm/transparent_hugepage/enabled";
  } else if (f.shared_huge_pages.empty() || f.shared_huge_pages == "never" ||
             f.shared_huge_pages == "deny") {
    c.remedy =
        "for a faster first stage: mount -t tmpfs -o huge=always tmpfs DIR, and DIR as the "
        "vault's directory";
  }
  return c;
}

Check locked_memory(const HostFacts& f, const DoctorOptions& options) {
  Check c{.name = "locked memory",
          .text = limit_text(f.memlock_soft) + " (at most " + limit_text(f.memlock_hard) + ")",
          .remedy = {}};
  if (f.memlock_soft < std::max(kMiB, kImagesPerRank * options.state_bytes)) {
    c.remedy =
        "matters only for pinned staging buffers of a GPU: ulimit -l unlimited, or docker "
        "run --ulimit memlock=-1";
  }
  return c;
}

Check open_files(const HostFacts& f) {
  const auto shown = [](std::uint64_t n) {
    return n == HostFacts::kUnlimited ? std::string("unlimited") : std::to_string(n);
  };
  Check c{.name = "open files",
          .text = shown(f.files_soft) + " (at most " + shown(f.files_hard) + ")",
          .remedy = {}};
  if (f.files_soft < kFewFiles) {
    c.level = Level::kWarning;
    c.remedy = "slots, peers and files take one each: ulimit -n " +
               shown(std::min<std::uint64_t>(f.files_hard, 65536));
  }
  return c;
}

Check file_size(const HostFacts& f, const DoctorOptions& options) {
  Check c{.name = "file size", .text = limit_text(f.file_size_soft), .remedy = {}};
  if (f.file_size_soft == HostFacts::kUnlimited) return c;
  c.level = f.file_size_soft < options.state_bytes ? Level::kProblem : Level::kWarning;
  c.remedy = "an image is one file, as large as the state: ulimit -f unlimited";
  return c;
}

Check removal(const HostFacts& f) {
  Check c{.name = "logout", .text = "shared memory outlives a logout", .remedy = {}};
  // logind leaves system users, root among them, alone.
  if (!f.logind || f.uid < 1000 || f.remove_ipc == false) return c;
  c.level = Level::kWarning;
  c.text = "logind removes this user's shared memory at the last logout";
  c.remedy = "RemoveIPC=no in /etc/systemd/logind.conf, or loginctl enable-linger";
  return c;
}

Check environment(const HostFacts& f) {
  Check c{.name = "environment", .text = {}, .remedy = {}};
  try {
    const auto e = RankEnvironment::detect(f.environment);
    c.text =
        fmt::format("rank {} of {}, {} on this host ({})", e.rank, e.world_size, e.local_world_size,
                    e.source == "none" ? "no launcher's variables" : "from " + e.source);
    if (!e.local_size_known && e.world_size > 1) {
      c.text = fmt::format("rank {} of {} (from {}); on how many hosts they are is not said",
                           e.rank, e.world_size, e.source);
      if (e.host.empty()) {
        c.level = Level::kWarning;
        c.remedy =
            "this host's own address is given to the others; set MESHSTAGE_HOST where that is the "
            "wrong one, or the number of ranks on this host (LOCAL_WORLD_SIZE, "
            "MESHSTAGE_LOCAL_WORLD_SIZE)";
      }
    }
    if (!e.job.empty() && !is_valid_job_name(e.job)) {
      c.level = Level::kProblem;
      c.text = "MESHSTAGE_JOB=\"" + printable(e.job, 80) + "\" is no job name";
      c.remedy = "use 1 to 64 of the characters A-Z a-z 0-9 . _ -";
    }
  } catch (const InvalidArgument& e) {
    c.level = Level::kProblem;
    c.text = printable(e.what(), 1000);
    c.remedy = "unset the variables that the launcher did not set, or correct them";
  }
  return c;
}

/// True if the launcher's variables say that there are ranks on other hosts, or may be.
bool spans_hosts(const HostFacts& f) {
  try {
    return !RankEnvironment::detect(f.environment).single_host();
  } catch (const InvalidArgument&) {  // environment() says so
    return false;
  }
}

/// At what the other ranks would reach this one.
Check host(const HostFacts& f) {
  const auto variable = f.environment.find("MESHSTAGE_HOST");
  Check c{.name = "host", .text = {}, .remedy = printable(f.host_error, 1000)};
  if (variable != f.environment.end() && !variable->second.empty()) {
    c.text = "MESHSTAGE_HOST=" + printable(variable->second, 200);
    if (f.host_error.empty()) return c;
    c.level = Level::kProblem;
    c.text += " cannot be used";
    return c;
  }
  if (f.host_error.empty()) {
    c.text = "other hosts reach this one at " + printable(f.own_address, 200);
    return c;
  }
  c.level = spans_hosts(f) ? Level::kProblem : Level::kWarning;
  c.text = "other hosts cannot reach this one; ranks of one host need no address";
  return c;
}

/// Where the ranks would meet.
Check store(const HostFacts& f) {
  Check c{.name = "store", .text = {}, .remedy = {}};
  const auto named = f.environment.find("MESHSTAGE_STORE");
  const std::string address = named == f.environment.end() ? "" : named->second;
  if (address.empty()) {
    c.text = "a folder below the job's directory";
    try {
      const auto e = RankEnvironment::detect(f.environment);
      if (e.single_host()) return c;
      c.text += e.local_size_known ? ", and the ranks are on several hosts"
                                   : ", and the ranks may be on several hosts";
    } catch (const InvalidArgument&) {
      return c;  // said of the environment
    }
    c.level = Level::kWarning;
    c.remedy =
        "unless all hosts share that folder: MESHSTAGE_STORE=file:/shared/dir, tcp://host:port "
        "(a `meshstage store`) or redis://host:port";
    return c;
  }
  const std::string shown = printable(without_password(address), 200);
  c.text = shown;
  if (address.starts_with('/') || address.starts_with("file:/")) return c;
  if (f.store_error.empty()) {
    c.text += " answers";
    return c;
  }
  c.level = f.store_silent ? Level::kWarning : Level::kProblem;  // it may start with the ranks
  c.text = f.store_silent ? shown + " does not answer from here"
                          : "MESHSTAGE_STORE=" + shown + " cannot be used";
  c.remedy = printable(f.store_error, 1000);
  return c;
}

/// Misspelt variables do nothing, silently.
std::vector<Check> unknown_variables(const HostFacts& f) {
  std::vector<Check> checks;
  const auto known = known_variables();
  for (const auto& [name, value] : f.environment) {
    if (!name.starts_with("MESHSTAGE_") || name.starts_with("MESHSTAGE_TEST_")) continue;
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    checks.push_back({.name = "environment",
                      .level = Level::kWarning,
                      .text = printable(name) + " is set, but means nothing",
                      .remedy = fmt::format("known: {}", fmt::join(known, ", "))});
  }
  return checks;
}

Check leftovers(const HostFacts& f) {
  Check c{.name = "leftovers", .text = "no vaults without an owner", .remedy = {}};
  if (f.dead_vaults == 0) return c;
  c.level = Level::kWarning;
  c.text = fmt::format("{} of {}, of jobs that no longer run", count_text(f.dead_vaults, "vault"),
                       size_text(f.dead_vault_bytes));
  c.remedy = "a restart of the same job takes them over; else: meshstage clean";
  return c;
}

std::string to_text(Level level) {
  switch (level) {
    case Level::kOk:
      return "ok";
    case Level::kWarning:
      return "warning";
    case Level::kProblem:
      return "PROBLEM";
  }
  return "?";
}

}  // namespace

std::vector<Check> diagnose(const HostFacts& facts, const DoctorOptions& options) {
  std::vector<Check> checks{memory(facts), control_group(facts), vault_place(facts)};
  if (options.state_bytes > 0 && facts.vault_exists) checks.push_back(room(facts, options));
  checks.insert(checks.end(), {huge_pages(facts), locked_memory(facts, options), open_files(facts),
                               file_size(facts, options), removal(facts), leftovers(facts),
                               environment(facts), host(facts), store(facts)});
  const auto unknown = unknown_variables(facts);
  checks.insert(checks.end(), unknown.begin(), unknown.end());
  return checks;
}

int run_doctor(const DoctorOptions& options, std::ostream& out) {
  const auto checks = diagnose(read_host(real_file_system(), options.vault), options);
  const auto count = [&](Level level) {
    return static_cast<std::uint64_t>(std::count_if(
        checks.begin(), checks.end(), [&](const auto& c) { return c.level == level; }));
  };
  const int code = count(Level::kProblem) > 0 ? 1 : 0;
  if (options.json) {
    nlohmann::ordered_json json{{"problems", count(Level::kProblem)},
                                {"warnings", count(Level::kWarning)},
                                {"checks", nlohmann::ordered_json::array()}};
    for (const auto& c : checks) {
      json["checks"].push_back(
          {{"name", c.name},
           {"level", c.level == Level::kProblem ? "problem" : to_text(c.level)},
           {"found", c.text},
           {"remedy", c.remedy}});
    }
    print_json(out, json);
    return code;
  }
  Columns columns({}, {});
  for (const auto& c : checks) {
    columns.add({to_text(c.level), c.name, c.text});
    if (!c.remedy.empty()) columns.add({"", "", "-> " + c.remedy});
  }
  columns.print(out);
  out << "\n"
      << count_text(count(Level::kProblem), "problem") << ", "
      << count_text(count(Level::kWarning), "warning") << "\n";
  return code;
}

}  // namespace meshstage::tools
