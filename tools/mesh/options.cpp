#include "tools/mesh/options.hpp"

#include <limits>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage::tools {
namespace {

const MeshFileLimits kLimits;

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> out;
  for (std::size_t from = 0;;) {
    const auto comma = text.find(',', from);
    out.push_back(text::trimmed(text.substr(from, comma - from)));
    if (comma == std::string_view::npos) return out;
    from = comma + 1;
  }
}

FailureDomains read_domains(const JobWords& words, const DeviceMesh& mesh) {
  int last = 0;
  for (std::int64_t i = 0; i < mesh.size(); ++i) last = std::max(last, mesh.rank_at(i));
  const auto most = std::numeric_limits<int>::max();
  if (words.ranks_per_host < 0 || words.ranks_per_host > most || words.hosts_per_rack < 0 ||
      words.hosts_per_rack > most) {
    throw InvalidArgument("--ranks-per-host and --hosts-per-rack: use numbers from 1, such as 8");
  }
  if (words.host_sizes.empty()) {
    return FailureDomains::uniform(
        last + 1, static_cast<int>(std::max<std::int64_t>(words.ranks_per_host, 1)),
        static_cast<int>(words.hosts_per_rack));
  }
  if (words.ranks_per_host > 0) {
    throw InvalidArgument("--ranks-per-host and --host-sizes exclude each other: give one");
  }
  std::vector<Host> hosts;
  std::int64_t next = 0;
  for (const std::int64_t size : read_numbers(words.host_sizes, 1, "--host-sizes")) {
    const auto h = static_cast<std::int64_t>(hosts.size());
    Host host{"host" + std::to_string(h), "", {}};
    if (words.hosts_per_rack > 0) host.rack = "rack" + std::to_string(h / words.hosts_per_rack);
    if (size > last + 1 - next) {
      throw InvalidArgument("--host-sizes " + words.host_sizes + " are more than the " +
                            text::count(last + 1, "rank") +
                            " there are: the sizes must add up to the number of ranks");
    }
    for (std::int64_t i = 0; i < size; ++i) host.ranks.push_back(static_cast<int>(next++));
    hosts.push_back(std::move(host));
  }
  if (next != last + 1) {
    throw InvalidArgument("--host-sizes " + words.host_sizes + " are " + std::to_string(next) +
                          " of " + text::count(last + 1, "rank") +
                          ": the sizes must add up to the number of ranks");
  }
  return FailureDomains::from_hosts(std::move(hosts));
}

}  // namespace

std::vector<std::int64_t> read_numbers(const std::string& text, std::int64_t least,
                                       const std::string& what) {
  std::vector<std::int64_t> out;
  for (const auto part : split(text)) {
    const auto number = text::number<std::int64_t>(part);
    if (!number || *number < least) {
      throw InvalidArgument(what + " " + text::quoted(text) + ": " +
                            (part.empty() ? "a number is missing" : text::quoted(part)) +
                            (number ? " is below " + std::to_string(least)
                                    : std::string(part.empty() ? "" : " is no number below 2^63")) +
                            "; write whole numbers with commas between, such as 2,4");
    }
    out.push_back(*number);
  }
  return out;
}

std::vector<std::string> read_names(const std::string& text) {
  std::vector<std::string> out;
  if (text.empty()) return out;
  for (const auto part : split(text)) out.emplace_back(part);
  return out;
}

DeviceMesh read_mesh(const MeshWords& words) {
  if (!words.file.empty()) {
    if (!words.mesh.empty() || !words.names.empty() || !words.ranks.empty()) {
      throw InvalidArgument("the mesh is described twice, by " + words.file +
                            " and by options: give a FILE, or --mesh 2,4");
    }
    return load_mesh_file(words.file).mesh;
  }
  if (words.mesh.empty()) throw InvalidArgument("no mesh: give a mesh FILE, or --mesh 2,4");
  const auto shape = read_numbers(words.mesh, 1, "--mesh");
  std::int64_t size = 1;
  for (const std::int64_t s : shape) {
    const auto next = text::product(size, s);
    if (!next || *next > kLimits.ranks) {
      throw InvalidArgument("--mesh " + words.mesh + " has more than " +
                            std::to_string(kLimits.ranks) + " ranks: use smaller sizes");
    }
    size = *next;
  }
  const auto names = read_names(words.names);
  if (words.ranks.empty()) return DeviceMesh::from_shape(shape, names);
  std::vector<int> ranks = parse_ranks(words.ranks);
  for (const int r : ranks) {
    if (r >= kLimits.ranks) {
      throw InvalidArgument("--ranks: rank " + std::to_string(r) + " is out of range: use 0 to " +
                            std::to_string(kLimits.ranks - 1));
    }
  }
  return DeviceMesh::from_ranks(std::move(ranks), shape, names);
}

MeshDescription read_job(const JobWords& words) {
  std::optional<MeshDescription> job;
  if (!words.file.empty()) {
    if (!words.mesh.mesh.empty() || words.ranks_per_host != 0 || words.hosts_per_rack != 0 ||
        !words.host_sizes.empty()) {
      throw InvalidArgument("mesh and hosts are described twice, by " + words.file +
                            " and by options: give a FILE, or --mesh with the host options");
    }
    job = load_mesh_file(words.file);
  } else {
    if (words.mesh.mesh.empty()) {
      throw InvalidArgument("no mesh: give a mesh FILE, or --mesh 2,4");
    }
    DeviceMesh mesh = read_mesh(words.mesh);
    FailureDomains domains = read_domains(words, mesh);
    job = MeshDescription{std::move(mesh), std::move(domains), {}, {}, false, false, {}};
    job->partners.copies = std::min(1, job->domains.world_size() - 1);
  }
  const bool changed = !words.policy.empty() || words.copies != -1;
  if (!words.policy.empty()) job->partners.policy = parse_partner_policy(words.policy);
  if (words.copies != -1) job->partners.copies = words.copies;
  if (changed || words.file.empty()) {
    const std::int64_t world = job->domains.world_size();
    if (job->partners.copies > 0 && job->partners.copies < world &&
        world * job->partners.copies > kLimits.copies) {
      throw InvalidArgument("--copies " + std::to_string(job->partners.copies) + " of each of " +
                            std::to_string(world) + " ranks are more than " +
                            std::to_string(kLimits.copies) + " copies in all: use fewer");
    }
    job->holders = make_holders(job->domains, job->partners);
    job->explicit_holders = false;
  }
  job->borrow_replicated = job->borrow_replicated || words.borrow_replicated;
  for (const std::string& word : words.tensors) {
    TensorSpec tensor = parse_tensor_spec(word);
    for (const TensorSpec& other : job->tensors) {
      if (other.name == tensor.name) {
        throw InvalidArgument("tensor " + text::quoted(tensor.name) +
                              " is listed twice: give every tensor a name of its own");
      }
    }
    const TensorPlace place = place_of(job->mesh, tensor);
    (void)Layout(place.mesh.shape(), tensor.shape, place.placements);
    job->tensors.push_back(std::move(tensor));
  }
  return std::move(*job);
}

}  // namespace meshstage::tools
