#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <ostream>
#include <span>
#include <string>
#include <tuple>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/replicated.hpp>
#include <meshstage/mesh/text.hpp>
#include "tools/mesh/json_out.hpp"
#include "tools/mesh/options.hpp"
#include "tools/mesh/words.hpp"

namespace meshstage::tools {
namespace {

constexpr std::size_t kTableRanks = 32;
constexpr std::size_t kTableHosts = 16;

[[noreturn]] void too_many_bytes() {
  throw InvalidArgument("the tensors have more than 2^63-1 bytes in all: use smaller sizes");
}
void add(std::int64_t& sum, std::int64_t more) {
  if (__builtin_add_overflow(sum, more, &sum)) too_many_bytes();
}
std::int64_t product(std::int64_t a, std::int64_t b) {
  const auto out = text::product(a, b);
  if (!out) too_many_bytes();
  return *out;
}

struct HostTraffic {
  std::int64_t sent = 0, held = 0;  // by its ranks
  std::int64_t out = 0, in = 0;     // over its link: what stays on the host is not counted
};

struct Traffic {
  std::vector<std::int64_t> own;   // by rank: its shards
  std::vector<std::int64_t> sent;  // by rank: to all its holders
  std::vector<std::int64_t> held;  // by rank: copies of its wards
  std::vector<HostTraffic> hosts;
  std::int64_t total = 0;  // sent by all
  std::int64_t borrowed =
      0;  // what all copies leave out, neither sent nor held: another host has it too
  std::int64_t borrowed_memory = 0;  // of the two slots of each copy
};

// Tensors that lie alike on the mesh, counted together.
struct Load {
  std::string part;  // of the mesh: empty for all of it
  TensorPlace place;
  Layout layout;
  std::int64_t element_bytes = 0;  // of all of them; 0: each rank has `bytes`
  std::int64_t bytes = 0;

  [[nodiscard]] std::int64_t bytes_at(std::span<const std::int64_t> coordinate) const {
    return element_bytes == 0 ? bytes : product(layout.local_numel(coordinate), element_bytes);
  }
};

// A job has hundreds of tensors, and few ways in which they lie: even ones differ by what they
// replicate, others by their shape.
std::vector<Load> loads(const MeshDescription& job) {
  using Kind = std::tuple<std::string, std::vector<std::int64_t>, std::string>;
  std::map<Kind, Load> by_kind;
  const std::vector<std::int64_t> first(job.mesh.ndim(), 0);
  for (const TensorSpec& tensor : job.tensors) {
    const TensorPlace place = place_of(job.mesh, tensor);
    const Layout layout(place.mesh.shape(), tensor.shape, place.placements);
    const bool even = layout.is_even();
    Kind kind;
    auto& [part, sizes, placements] = kind;
    part = to_string(tensor.only);
    if (even) {
      for (const Placement& p : layout.placements()) placements += p.is_replicate() ? 'R' : '-';
    } else {
      sizes = layout.tensor_shape();
      placements = to_string(layout.placements());
    }
    Load& load = by_kind.try_emplace(std::move(kind), Load{to_string(tensor.only), place, layout})
                     .first->second;
    if (even) {
      add(load.bytes, product(layout.local_numel(first), tensor.element_bytes));
    } else {
      add(load.element_bytes, tensor.element_bytes);
    }
  }
  std::vector<Load> out;
  for (auto& [kind, load] : by_kind) out.push_back(std::move(load));
  return out;
}

// The lenders, by place, for each part of the mesh and set of dimensions that replicates.
class Lenders {
 public:
  explicit Lenders(const MeshDescription& job) : job_(job) {}
  // Empty if nothing is borrowed.
  const std::vector<int>& of(const Load& load) {
    std::vector<bool> replicated;
    for (const Placement& p : load.place.placements) replicated.push_back(p.is_replicate());
    auto& known = known_[{load.part, replicated}];
    if (known.empty() && job_.borrow_replicated) {
      known = lenders_by_place(load.place.mesh, load.place.placements, job_.domains);
    }
    return known;
  }

 private:
  const MeshDescription& job_;
  std::map<std::pair<std::string, std::vector<bool>>, std::vector<int>> known_;
};

Traffic count(const MeshDescription& job) {
  const auto world = static_cast<std::size_t>(job.domains.world_size());
  Traffic t;
  t.own.assign(world, 0);
  t.sent.assign(world, 0);
  t.held.assign(world, 0);
  t.hosts.resize(static_cast<std::size_t>(job.domains.hosts()));
  Lenders lenders(job);
  std::vector<std::int64_t> coordinate(job.mesh.ndim());
  for (const Load& load : loads(job)) {
    const std::vector<int>& lender = lenders.of(load);
    const DeviceMesh& mesh = load.place.mesh;
    for (std::int64_t i = 0; i < mesh.size(); ++i) {
      std::int64_t rest = i;
      for (std::size_t d = mesh.ndim(); d-- > 0;) {
        coordinate[d] = rest % mesh.shape()[d];
        rest /= mesh.shape()[d];
      }
      const int rank = mesh.rank_at(i);
      const auto r = static_cast<std::size_t>(rank);
      const std::int64_t bytes = load.bytes_at(coordinate);
      add(t.own[r], bytes);
      if (!lender.empty() && lender[static_cast<std::size_t>(i)] >= 0) {
        for (std::size_t copy = 0; copy < job.holders[r].size(); ++copy) add(t.borrowed, bytes);
        continue;
      }
      const int from = job.domains.host_of(rank);
      HostTraffic& here = t.hosts[static_cast<std::size_t>(from)];
      for (const int h : job.holders[r]) {
        const int to = job.domains.host_of(h);
        HostTraffic& there = t.hosts[static_cast<std::size_t>(to)];
        add(t.held[static_cast<std::size_t>(h)], bytes);
        add(there.held, bytes);
        add(t.sent[r], bytes);
        add(here.sent, bytes);
        add(t.total, bytes);
        if (from != to) {
          add(here.out, bytes);
          add(there.in, bytes);
        }
      }
    }
  }
  t.borrowed_memory = product(t.borrowed, 2);
  return t;
}

// The lenders of each rank; none where nothing is borrowed.
std::vector<std::vector<int>> lenders_in(const MeshDescription& job) {
  if (job.borrow_replicated) return lenders_of(job.mesh, job.tensors, job.domains);
  return std::vector<std::vector<int>>(static_cast<std::size_t>(job.domains.world_size()));
}

std::int64_t busiest(const Traffic& t) {
  std::int64_t most = 0;
  for (const HostTraffic& h : t.hosts) most = std::max({most, h.out, h.in});
  return most;
}

void partners_json(const MeshDescription& job, const Traffic& t, double bandwidth,
                   std::ostream& out) {
  JsonOut json(out);
  json.begin_object();
  json.key("world").value(std::int64_t{job.domains.world_size()});
  if (job.explicit_holders) {
    json.key("policy").null();
  } else {
    json.key("policy").value(to_string(job.partners.policy));
    json.key("copies").value(std::int64_t{job.partners.copies});
  }
  json.key("borrow_replicated").value(job.borrow_replicated);
  const auto wards = wards_of(job.holders);
  const auto lenders = lenders_in(job);
  json.key("ranks").begin_list();
  for (std::size_t r = 0; r < job.holders.size(); ++r) {
    json.begin_object();
    json.key("rank").value(static_cast<std::int64_t>(r));
    json.key("host").value(job.domains.host(job.domains.host_of(static_cast<int>(r))).name);
    json.key("holders").list(job.holders[r]);
    json.key("wards").list(wards[r]);
    json.key("lenders").list(lenders[r]);
    json.key("own_bytes").value(t.own[r]);
    json.key("sent_bytes").value(t.sent[r]);
    json.key("held_bytes").value(t.held[r]);
    json.end_object();
  }
  json.end_list();
  json.key("hosts").begin_list();
  for (std::size_t h = 0; h < t.hosts.size(); ++h) {
    json.begin_object();
    json.key("host").value(job.domains.host(static_cast<int>(h)).name);
    json.key("ranks").value(
        static_cast<std::int64_t>(job.domains.host(static_cast<int>(h)).ranks.size()));
    json.key("sent_bytes").value(t.hosts[h].sent);
    json.key("held_bytes").value(t.hosts[h].held);
    json.key("link_out_bytes").value(t.hosts[h].out);
    json.key("link_in_bytes").value(t.hosts[h].in);
    json.end_object();
  }
  json.end_list();
  json.key("total_bytes").value(t.total);
  json.key("borrowed_bytes").value(t.borrowed);
  json.key("borrowed_memory_bytes").value(t.borrowed_memory);
  json.key("busiest_link_bytes").value(busiest(t));
  if (bandwidth > 0) {
    json.key("gigabytes_per_second").value(bandwidth);
    json.key("seconds").value(static_cast<double>(busiest(t)) / (bandwidth * 1e9));
  }
  json.end_object();
  json.finish();
}

std::string rack_words(const FailureDomains& domains) {
  return domains.racks() > 0 ? " in " + text::count(domains.racks(), "rack") : std::string();
}

void partners_table(const MeshDescription& job, const Traffic& t, double bandwidth,
                    std::ostream& out) {
  const auto world = static_cast<std::size_t>(job.domains.world_size());
  out << fmt::format("{} on {}{}: {}\n\n", text::count(job.domains.world_size(), "rank"),
                     text::count(job.domains.hosts(), "host"), rack_words(job.domains),
                     partners_words(job));
  const auto wards = wards_of(job.holders);
  const auto lenders = lenders_in(job);
  const bool bytes = !job.tensors.empty();
  std::vector<std::string> header{"rank", "host", "holders", "holds copies of"};
  if (job.borrow_replicated) header.emplace_back("borrows from");
  if (bytes) header.insert(header.end(), {"own", "sends", "holds"});
  Table ranks(header);
  for (std::size_t r = 0; r < std::min(world, kTableRanks); ++r) {
    std::vector<std::string> row{std::to_string(r),
                                 job.domains.host(job.domains.host_of(static_cast<int>(r))).name,
                                 short_ranks(job.holders[r], 24), short_ranks(wards[r], 24)};
    if (job.borrow_replicated) row.push_back(short_ranks(lenders[r], 24));
    if (bytes) {
      row.push_back(bytes_words(static_cast<double>(t.own[r])));
      row.push_back(bytes_words(static_cast<double>(t.sent[r])));
      row.push_back(bytes_words(static_cast<double>(t.held[r])));
    }
    ranks.add(std::move(row));
  }
  out << ranks.str();
  if (world > kTableRanks) {
    out << fmt::format("  ... and {} more ranks: --json lists all\n", world - kTableRanks);
  }
  if (bytes) {
    out << "\n";
    Table hosts({"host", "ranks", "sends", "holds", "link out", "link in"});
    for (std::size_t h = 0; h < std::min(t.hosts.size(), kTableHosts); ++h) {
      const Host& host = job.domains.host(static_cast<int>(h));
      const auto w = [](std::int64_t b) { return bytes_words(static_cast<double>(b)); };
      hosts.add({host.name, std::to_string(host.ranks.size()), w(t.hosts[h].sent),
                 w(t.hosts[h].held), w(t.hosts[h].out), w(t.hosts[h].in)});
    }
    out << hosts.str();
    if (t.hosts.size() > kTableHosts) {
      out << fmt::format("  ... and {} more hosts\n", t.hosts.size() - kTableHosts);
    }
  }
  out << "\n";
  std::size_t most_wards = 0;
  std::size_t at_home = 0;
  for (std::size_t r = 0; r < world; ++r) {
    most_wards = std::max(most_wards, wards[r].size());
    const int home = job.domains.host_of(static_cast<int>(r));
    at_home += std::all_of(job.holders[r].begin(), job.holders[r].end(),
                           [&](int h) { return job.domains.host_of(h) == home; });
  }
  if (most_wards == 0) {
    out << "no rank holds copies\n";
  } else {
    out << fmt::format("a rank holds copies of at most {} other{}\n", most_wards,
                       most_wards == 1 ? "" : "s");
  }
  if (at_home > 0) {
    out << fmt::format(
        "{} of {} ranks have no copy on another host: the loss of their host loses them\n", at_home,
        world);
  }
  if (!bytes) {
    out << "add --tensor w=f32[1024,512]:S(0),R (or tensors in the file) for bytes and seconds\n";
    return;
  }
  double need = 0;  // two slots for the own image and two for each ward
  for (std::size_t r = 0; r < world; ++r) {
    need = std::max(need, 2.0 * (static_cast<double>(t.own[r]) + static_cast<double>(t.held[r])));
  }
  out << fmt::format("each step sends {} in all; the fullest rank needs {} of host memory\n",
                     bytes_words(static_cast<double>(t.total)), bytes_words(need));
  if (job.borrow_replicated) {
    out << fmt::format(
        "borrowed, because another host has it too: {} of each step's sending, {} of host memory\n",
        bytes_words(static_cast<double>(t.borrowed)),
        bytes_words(static_cast<double>(t.borrowed_memory)));
  }
  out << fmt::format("the busiest host's link carries {} one way",
                     bytes_words(static_cast<double>(busiest(t))));
  if (bandwidth > 0) {
    out << fmt::format(": {} at {:g} GB/s each way",
                       seconds_words(static_cast<double>(busiest(t)) / (bandwidth * 1e9)),
                       bandwidth);
  }
  out << "\n";
}

}  // namespace

int mesh_partners(const PartnersOptions& options, std::ostream& out) {
  if (options.bandwidth < 0 || !(options.bandwidth < 1e12)) {
    throw InvalidArgument("--bandwidth: give GB/s above 0, such as 12.5");
  }
  const MeshDescription job = read_job(options.job);
  const Traffic traffic = count(job);
  if (options.json) {
    partners_json(job, traffic, options.bandwidth, out);
  } else {
    partners_table(job, traffic, options.bandwidth, out);
  }
  return 0;
}

}  // namespace meshstage::tools
