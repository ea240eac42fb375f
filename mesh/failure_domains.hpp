#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

class ProcessGroup;

/// The unit that is lost at once: one process, all processes of a host, or all hosts of a rack.
enum class DomainLevel : std::uint8_t { kRank, kHost, kRack };
/// "rank", "host", "rack".
[[nodiscard]] MESHSTAGE_API std::string_view to_string(DomainLevel level) noexcept;
[[nodiscard]] MESHSTAGE_API DomainLevel parse_domain_level(std::string_view text);

/// One host of a job: its ranks, and the rack it stands in ("" where racks are not known).
struct Host {
  std::string name;
  std::string rack;
  std::vector<int> ranks;
  friend bool operator==(const Host&, const Host&) = default;
};

/// The host of each rank 0..W-1, and the rack of each host. An immutable value. Threads: any. Hosts
/// and racks are numbered in the order in which they were given.
class MESHSTAGE_API FailureDomains {
 public:
  /// The hosts together must have every rank once; either all hosts have a rack or none has. Throws
  /// InvalidArgument naming a rank that is repeated or missing, or a host without ranks.
  [[nodiscard]] static FailureDomains from_hosts(std::vector<Host> hosts);
  /// Host names by rank, as gathered from the ranks; hosts are numbered by their lowest rank.
  [[nodiscard]] static FailureDomains from_host_names(std::span<const std::string> name_of_rank);
  /// Ranks in order, `ranks_per_host` on each host; the last host may have fewer. hosts_per_rack 0:
  /// no racks. Hosts are named host0, host1, ..., racks rack0, ... Throws InvalidArgument for
  /// numbers below 1.
  [[nodiscard]] static FailureDomains uniform(int world_size, int ranks_per_host,
                                              int hosts_per_rack = 0);

  [[nodiscard]] int world_size() const noexcept { return static_cast<int>(host_of_.size()); }
  [[nodiscard]] int hosts() const noexcept { return static_cast<int>(hosts_.size()); }
  /// 0 if racks are not known.
  [[nodiscard]] int racks() const noexcept { return static_cast<int>(racks_.size()); }
  [[nodiscard]] const Host& host(int host) const {
    return hosts_.at(static_cast<std::size_t>(host));
  }
  [[nodiscard]] const std::string& rack_name(int rack) const {
    return racks_.at(static_cast<std::size_t>(rack));
  }
  /// The host of a rank in 0..W-1.
  [[nodiscard]] int host_of(int rank) const { return host_of_.at(static_cast<std::size_t>(rank)); }
  /// The rack of a rank. Throws InvalidState if racks are not known.
  [[nodiscard]] int rack_of(int rank) const;

  /// The number of domains of a level, the domain of a rank, and the name of a domain. kRack throws
  /// InvalidArgument if racks are not known.
  [[nodiscard]] int count(DomainLevel level) const;
  [[nodiscard]] int domain_of(int rank, DomainLevel level) const;
  [[nodiscard]] std::string domain_name(int domain, DomainLevel level) const;

  friend bool operator==(const FailureDomains&, const FailureDomains&) = default;

 private:
  FailureDomains() = default;
  std::vector<Host> hosts_;
  std::vector<std::string> racks_;
  std::vector<int> host_of_;       // by rank
  std::vector<int> rack_of_host_;  // by host; empty if racks are not known
};

/// The system's name for this host. Ranks in containers of one host may get different names: give
/// names of your own there, for example the scheduler's node names.
[[nodiscard]] MESHSTAGE_API std::string host_name();

/// Gathers the hosts (and racks) of a running job: every rank gives its own, and all ranks get the
/// same result. Collective over the group; rank r of the result is rank r of the group. `rack` is
/// empty on all ranks or on none. Throws InvalidArgument, the same on every rank, if what ranks
/// give does not fit together (the message names the host), and the errors of collectives.
[[nodiscard]] MESHSTAGE_API FailureDomains gather_failure_domains(ProcessGroup& group,
                                                                  const std::string& host,
                                                                  const std::string& rack,
                                                                  Deadline deadline);

}  // namespace meshstage
