#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meshstage/mesh/partners.hpp>

#include "tools/drill/fault.hpp"

namespace CLI {
class App;
}

namespace meshstage::tools::drill {

/// What the user asked for, checked: every rank, step and point exists.
struct Arguments {
  int ranks = 4;
  std::uint64_t steps = 200;
  std::uint64_t every = 5;
  std::filesystem::path text;       ///< Absolute, readable.
  std::filesystem::path directory;  ///< Empty: a temporary one.
  bool json = false;
  unsigned connections = 0;          ///< Of two ranks for images; 0: by the library's default.
  std::string device = "cpu";        ///< Where the ranks' states live in the run with the faults.
  std::string collectives = "host";  ///< "nccl": gradients are averaged over NCCL on the device.
  std::filesystem::path trace;       ///< Empty: none.
  /// (rank, step): that rank alone does not stage that step, so it fails on all.
  std::vector<std::pair<int, std::uint64_t>> leave_out;
  std::vector<Fault> faults;  ///< Ascending by step; at least one.
  std::uint64_t deadline_ms = 0;
  std::uint64_t persist_every = 0;
  std::uint64_t timeout_s = 300;   ///< For each of the two runs.
  std::vector<std::int64_t> mesh;  ///< Of the optimizer's moments; empty: none.
  bool sharded = false;            ///< The moments are cut over all ranks, however many there are.
  bool borrow_replicated = false;  ///< Replicas borrow what the mesh repeats on another host.
  PartnerOptions partners;
  int ranks_per_host = 1;
  std::string disks = "shared";       ///< "local": each host has a disk of its own.
  std::string hosts = "directories";  ///< "namespaces": each is a set of Linux namespaces.
  /// Who holds whose images, in a job of so many ranks.
  [[nodiscard]] Holders holders(int of_ranks) const;
  [[nodiscard]] Holders holders() const { return holders(ranks); }
  /// For every rank the lenders of its replicas; none for one that comes back without borrowed
  /// tensors. All empty without borrow_replicated.
  [[nodiscard]] std::vector<std::vector<int>> lenders() const;
  /// The hosts of the job: as many as it has ranks for when it has the most.
  [[nodiscard]] int host_count() const;
  /// After some fault the ranks sit on other hosts.
  [[nodiscard]] bool moves_ranks() const;
  [[nodiscard]] bool local_disks() const { return disks == "local"; }
  [[nodiscard]] bool in_namespaces() const { return hosts == "namespaces"; }
  /// A host that is lost goes with all its ranks.
  [[nodiscard]] bool hosts_go_whole() const { return local_disks() || in_namespaces(); }
  /// No rank sees the vaults of another host.
  [[nodiscard]] bool hosts_are_apart() const;
  /// Some restart has another number of ranks.
  [[nodiscard]] bool changes_world() const;
  /// Both runs average gradients over NCCL.
  [[nodiscard]] bool over_nccl() const { return collectives == "nccl"; }
  /// The launcher says which start of the whole job each process belongs to.
  [[nodiscard]] bool starts_are_named() const;
  /// The numbers of ranks that the job has, in the order of the restarts.
  [[nodiscard]] std::vector<int> worlds() const;
};

/// The options of `meshstage drill` as typed; complete() checks them.
/// Lives as long as the App they were added to is parsed.
class ArgumentParser {
 public:
  void add_to(CLI::App& command);
  /// Throws InvalidArgument (or NotFound for the text): one line that says the valid form.
  [[nodiscard]] Arguments complete() const;

 private:
  [[nodiscard]] std::filesystem::path find_text() const;
  void check_numbers() const;
  void place(Arguments& a) const;
  void take_faults(Arguments& a) const;

  Arguments given_;
  std::vector<std::string> kills_, stops_, loses_, restarts_, twice_, left_out_;
  std::optional<std::uint64_t> random_kills_, random_restarts_, seed_, persist_every_, deadline_ms_;
  std::optional<int> ranks_;
  std::string text_, policy_;
};

/// `count` kills, drawn from the seed: ranks, steps, points, now and then a second rank while the
/// others recover. Every one of them is reached, also among so many faults of all. Ascending by
/// step.
std::vector<Fault> random_kills(std::uint64_t count, std::uint64_t seed, const Arguments& arguments,
                                std::uint64_t faults_of_all = 0);

/// `count` faults of the whole job, drawn from the seed: restarts (on other hosts, with other
/// numbers of ranks), stops of all, second starts. Every one of them is reached, also among so many
/// kills. None leaves images behind that the job needs. Ascending by step.
std::vector<Fault> random_restarts(std::uint64_t count, std::uint64_t seed,
                                   const Arguments& arguments, std::uint64_t kills = 0);

/// What is done when nothing is asked for: the rank after the middle one loses its host in the
/// midst of receiving its ward's image.
Fault default_fault(const Arguments& arguments);

}  // namespace meshstage::tools::drill
