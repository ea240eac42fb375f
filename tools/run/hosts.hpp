#pragma once
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace meshstage::tools::run {

/// A host of a job and how many ranks run there.
struct Host {
  std::string name;  ///< What the other hosts reach it by.
  int ranks = 1;
};

/// The ranks of one host among those of the job: ranks are dealt host by host, in the file's order.
struct Place {
  int host = 0;  ///< Index of this host.
  int hosts = 1;
  int first_rank = 0;
  int ranks = 1;
  int world_size = 1;
  std::string name;        ///< This host's; empty where the job has one host.
  std::string first_host;  ///< Where rank 0 runs; empty where the job has one host.
};

/// Reads `NAME` or `NAME RANKS` or `NAME slots=RANKS` a line; # begins a comment. `source` names
/// the file in errors. Throws InvalidArgument with the line.
[[nodiscard]] std::vector<Host> parse_hosts(std::string_view text, const std::string& source);
/// Throws NotFound where there is no such file.
[[nodiscard]] std::vector<Host> read_hosts(const std::filesystem::path& file);
/// Where `name` stands. Throws InvalidArgument where it does not, naming the hosts there are.
[[nodiscard]] Place place_of(const std::vector<Host>& hosts, const std::string& name);

}  // namespace meshstage::tools::run
