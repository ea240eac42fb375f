#include <meshstage/mesh/mesh_file.hpp>

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <set>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/text.hpp>
#include <meshstage/mesh/toml_impl.hpp>

namespace meshstage {
namespace {

// Reads a file's tables and collects what is wrong. A function that returns nothing has said why.
class Reader {
 public:
  explicit Reader(const MeshFileLimits& limits) : limits_(limits) {}

  MeshFileResult read(std::string_view text);

 private:
  struct Place {
    const toml::node* node;
    std::string key;
  };

  void error(const Place& at, std::string message, std::string fix) {
    MeshFileError e;
    if (at.node != nullptr) {
      e.line = static_cast<int>(at.node->source().begin.line);
      e.column = static_cast<int>(at.node->source().begin.column);
    }
    e.key = text::printable(at.key);
    e.message = text::printable(message);
    e.fix = std::move(fix);
    errors_.push_back(std::move(e));
  }
  // Runs f; what it throws becomes an error at this place: "what is wrong: what to do".
  template <class F>
  bool attempt(const Place& at, F&& f) {
    try {
      f();
      return true;
    } catch (const InvalidArgument& e) {
      std::string what = e.what();
      const std::string kind = std::string(to_string(e.kind())) + ": ";
      if (what.rfind(kind, 0) == 0) what.erase(0, kind.size());
      const auto colon = what.rfind(": ");
      const bool fix = colon != std::string::npos;
      error(at, what.substr(0, colon), fix ? what.substr(colon + 2) : "");
      return false;
    }
  }

  static Place in(const Place& table, std::string_view key) {
    const toml::node* node = table.node->as_table()->get(key);
    return {node, table.key.empty() ? std::string(key) : table.key + "." + std::string(key)};
  }
  void known_keys(const Place& table, std::initializer_list<std::string_view> keys) {
    std::string list;
    for (const auto key : keys) list += (list.empty() ? "" : ", ") + std::string(key);
    for (const auto& [key, node] : *table.node->as_table()) {
      if (std::find(keys.begin(), keys.end(), key.str()) == keys.end()) {
        error({&node, (table.key.empty() ? "" : table.key + ".") + std::string(key.str())},
              "unknown key " + text::quoted(key.str()), "use " + list);
      }
    }
  }
  [[nodiscard]] bool is_table(const Place& at, const std::string& form) {
    if (at.node->is_table()) return true;
    error(at, "is not a table", "write " + form);
    return false;
  }
  std::optional<std::int64_t> integer(const Place& at, std::int64_t least, std::int64_t most) {
    const auto* value = at.node->as_integer();
    if (value == nullptr) {
      error(at, "is not a whole number", "write a number such as " + std::to_string(least));
      return {};
    }
    if (value->get() < least || value->get() > most) {
      error(at, std::to_string(value->get()) + " is out of range",
            "use " + std::to_string(least) + " to " + std::to_string(most));
      return {};
    }
    return value->get();
  }
  std::optional<std::string> word(const Place& at, const std::string& example) {
    const auto* value = at.node->as_string();
    if (value == nullptr || value->get().empty()) {
      error(at, value == nullptr ? "is not a string" : "is empty", "write one, such as " + example);
      return {};
    }
    return value->get();
  }
  std::optional<std::vector<std::int64_t>> integers(const Place& at, std::int64_t least,
                                                    std::int64_t most, const std::string& example) {
    const toml::array* array = at.node->as_array();
    if (array == nullptr) {
      error(at, "is not a list of whole numbers", "write it as " + example);
      return {};
    }
    std::vector<std::int64_t> out;
    for (const toml::node& node : *array) {
      const auto value =
          integer({&node, at.key + "[" + std::to_string(out.size()) + "]"}, least, most);
      if (!value) return {};
      out.push_back(*value);
    }
    return out;
  }
  std::optional<std::vector<int>> ranks(const Place& at);

  void read_mesh(const Place& root);
  void read_hosts(const Place& root);
  void read_partners(const Place& root);
  void read_tensors(const Place& root);
  void read_tensor(const Place& table);

  MeshFileLimits limits_;
  std::vector<MeshFileError> errors_;
  std::optional<DeviceMesh> mesh_;
  std::optional<FailureDomains> domains_;
  PartnerOptions partners_;
  Holders holders_;
  bool explicit_holders_ = false;
  bool borrow_replicated_ = false;
  std::vector<TensorSpec> tensors_;
  std::set<std::string> tensor_names_;
};

constexpr const char* kMeshForm = "[mesh] with shape = [2, 4] and names = [\"dp\", \"tp\"]";
constexpr const char* kHostForm = "[[host]] with name = \"a\" and ranks = \"0-3\"";

std::optional<std::vector<int>> Reader::ranks(const Place& at) {
  std::vector<int> out;
  if (const auto* value = at.node->as_string()) {
    if (!attempt(at, [&] { out = parse_ranks(value->get(), limits_.ranks); })) return {};
    return out;
  }
  const auto numbers =
      integers(at, 0, std::numeric_limits<int>::max() - 1, "[0, 1, 2, 3] or \"0-3\"");
  if (!numbers) return {};
  for (const std::int64_t r : *numbers) out.push_back(static_cast<int>(r));
  return out;
}

void Reader::read_mesh(const Place& root) {
  const Place at = in(root, "mesh");
  if (at.node == nullptr) {
    error({nullptr, "mesh"}, "there is no mesh", std::string("add ") + kMeshForm);
    return;
  }
  if (!is_table(at, kMeshForm)) return;
  known_keys(at, {"shape", "names", "ranks"});
  const Place shape_at = in(at, "shape");
  if (shape_at.node == nullptr) {
    error({at.node, "mesh.shape"}, "the mesh has no shape", "add shape = [2, 4]");
    return;
  }
  const auto shape = integers(shape_at, 1, limits_.ranks, "[2, 4]");
  if (!shape) return;
  std::int64_t size = 1;
  for (const std::int64_t s : *shape) {
    size = std::min(text::product(size, s).value_or(limits_.ranks + 1), limits_.ranks + 1);
  }
  if (size > limits_.ranks) {
    error(shape_at, "the mesh has more than " + std::to_string(limits_.ranks) + " ranks",
          "use smaller sizes");
    return;
  }
  std::vector<std::string> names;
  const Place names_at = in(at, "names");
  if (names_at.node != nullptr) {
    const toml::array* array = names_at.node->as_array();
    if (array == nullptr) {
      error(names_at, "is not a list of names", "write names = [\"dp\", \"tp\"]");
      return;
    }
    for (const toml::node& node : *array) {
      auto name = word({&node, "mesh.names[" + std::to_string(names.size()) + "]"}, "\"dp\"");
      if (!name) return;
      names.push_back(std::move(*name));
    }
    if (names.size() != shape->size()) {
      error(names_at,
            text::count(std::ssize(names), "name") + " for " +
                text::count(std::ssize(*shape), "dimension"),
            "give one name for each size in mesh.shape");
      return;
    }
  }
  const Place ranks_at = in(at, "ranks");
  if (ranks_at.node == nullptr) {
    attempt(names_at.node != nullptr ? names_at : shape_at,
            [&] { mesh_ = DeviceMesh::from_shape(*shape, names); });
    return;
  }
  auto explicit_ranks = ranks(ranks_at);
  if (!explicit_ranks) return;
  const auto high = std::max_element(explicit_ranks->begin(), explicit_ranks->end());
  if (high != explicit_ranks->end() && *high >= limits_.ranks) {
    error(ranks_at, "rank " + std::to_string(*high) + " is out of range",
          "use 0 to " + std::to_string(limits_.ranks - 1));
    return;
  }
  attempt(ranks_at, [&] { mesh_ = DeviceMesh::from_ranks(*explicit_ranks, *shape, names); });
}

void Reader::read_hosts(const Place& root) {
  const Place list_at = in(root, "host");
  const Place rule_at = in(root, "hosts");
  int last = -1;
  for (std::int64_t i = 0; mesh_ && i < mesh_->size(); ++i)
    last = std::max(last, mesh_->rank_at(i));
  if (list_at.node == nullptr) {
    std::int64_t per_host = 1;
    std::int64_t per_rack = 0;
    std::int64_t world = last + 1;
    bool good = true;
    if (rule_at.node != nullptr) {
      if (!is_table(rule_at, "[hosts] with ranks_per_host = 8")) return;
      known_keys(rule_at, {"ranks_per_host", "hosts_per_rack", "world"});
      const auto number = [&](std::string_view key, std::int64_t& value) {
        const Place at = in(rule_at, key);
        if (at.node == nullptr) return;
        const auto read = integer(at, 1, limits_.ranks);
        good = good && read;
        value = read.value_or(value);
      };
      number("ranks_per_host", per_host);
      number("hosts_per_rack", per_rack);
      number("world", world);
      if (in(rule_at, "ranks_per_host").node == nullptr) {
        error({rule_at.node, "hosts.ranks_per_host"}, "is missing",
              "say how many ranks a host has, or list hosts as " + std::string(kHostForm));
        good = false;
      }
    }
    if (!good || world < 1) return;
    attempt(rule_at, [&] {
      domains_ = FailureDomains::uniform(static_cast<int>(world), static_cast<int>(per_host),
                                         static_cast<int>(per_rack));
    });
  } else {
    if (rule_at.node != nullptr) {
      error(rule_at, "hosts are described twice, by [hosts] and by [[host]]", "keep one of them");
      return;
    }
    const toml::array* list = list_at.node->as_array();
    if (list == nullptr || list->empty()) {
      error(list_at, "is not a list of tables", std::string("write ") + kHostForm);
      return;
    }
    std::vector<Host> hosts;
    bool good = true;
    std::size_t i = 0;
    for (const toml::node& node : *list) {
      const Place at{&node, "host[" + std::to_string(i++) + "]"};
      if (!is_table(at, kHostForm)) return;
      known_keys(at, {"name", "rack", "ranks"});
      Host host{"host" + std::to_string(i - 1), "", {}};
      if (const Place name_at = in(at, "name"); name_at.node != nullptr) {
        const auto name = word(name_at, "\"a\"");
        good = good && name;
        host.name = name.value_or("");
      }
      if (const Place rack_at = in(at, "rack"); rack_at.node != nullptr) {
        const auto rack = word(rack_at, "\"r1\"");
        good = good && rack;
        host.rack = rack.value_or("");
      }
      const Place ranks_at = in(at, "ranks");
      if (ranks_at.node == nullptr) {
        error({at.node, at.key + ".ranks"}, "is missing", "add ranks = \"0-3\" or [0, 1, 2, 3]");
        good = false;
        continue;
      }
      auto read = ranks(ranks_at);
      good = good && read;
      host.ranks = std::move(read).value_or(std::vector<int>());
      hosts.push_back(std::move(host));
    }
    if (!good) return;
    if (!attempt({&list->front(), "host"},
                 [&] { domains_ = FailureDomains::from_hosts(std::move(hosts)); })) {
      return;
    }
  }
  if (domains_ && last >= domains_->world_size()) {
    error({list_at.node != nullptr ? list_at.node : rule_at.node,
           list_at.node != nullptr ? "host" : "hosts"},
          "rank " + std::to_string(last) + " of the mesh has no host",
          "give every rank of the mesh a host");
    domains_.reset();
  }
}

void Reader::read_partners(const Place& root) {
  const Place at = in(root, "partners");
  if (domains_) partners_.copies = std::min(1, domains_->world_size() - 1);
  Place policy_at{at.node, "partners"};
  if (at.node != nullptr) {
    if (!is_table(at, "[partners] with policy = \"half-shift\" and copies = 1")) return;
    known_keys(at, {"policy", "copies", "max_wards", "holders", "borrow_replicated"});
    if (const Place p = in(at, "borrow_replicated"); p.node != nullptr) {
      if (const auto* value = p.node->as_boolean()) {
        borrow_replicated_ = value->get();
      } else {
        error(p, "is neither true nor false", "write true or false");
      }
    }
    const auto number = [&](std::string_view key, int least, int& value) {
      const Place p = in(at, key);
      if (p.node == nullptr) return true;
      const auto read = integer(p, least, limits_.ranks);
      value = static_cast<int>(read.value_or(value));
      return read.has_value();
    };
    if (!number("copies", 0, partners_.copies) || !number("max_wards", 0, partners_.max_wards)) {
      return;
    }
    if (const Place p = in(at, "policy"); p.node != nullptr) {
      policy_at = p;
      const auto name = word(p, "\"half-shift\"");
      if (!name || !attempt(p, [&] { partners_.policy = parse_partner_policy(*name); })) return;
    }
    if (const Place p = in(at, "holders"); p.node != nullptr) {
      explicit_holders_ = true;
      for (const auto key : {"policy", "copies", "max_wards"}) {
        if (const Place other = in(at, key); other.node != nullptr) {
          error(other, "a policy and a list of holders exclude each other",
                "keep one of partners." + std::string(key) + " and partners.holders");
          return;
        }
      }
      const toml::array* list = p.node->as_array();
      if (list == nullptr) {
        error(p, "is not a list of lists of ranks", "write holders = [[1], [0]]");
        return;
      }
      for (const toml::node& node : *list) {
        auto mine = ranks({&node, "partners.holders[" + std::to_string(holders_.size()) + "]"});
        if (!mine) return;
        holders_.push_back(std::move(*mine));
      }
      if (domains_) attempt(p, [&] { check_holders(holders_, domains_->world_size()); });
      return;
    }
  }
  if (!domains_) return;
  if (std::int64_t{domains_->world_size()} * partners_.copies > limits_.copies) {
    error(policy_at,
          std::to_string(partners_.copies) + " copies of each of " +
              std::to_string(domains_->world_size()) + " ranks are more than can be described",
          "use fewer copies");
    return;
  }
  attempt(policy_at, [&] { holders_ = make_holders(*domains_, partners_); });
}

void Reader::read_tensor(const Place& table) {
  if (!is_table(table, "[[tensor]] with name, shape, dtype and placements")) return;
  known_keys(table, {"name", "shape", "dtype", "placements", "only"});
  bool complete = true;
  const auto required = [&](std::string_view key, const char* example) {
    const Place at = in(table, key);
    if (at.node == nullptr) {
      error({table.node, at.key}, "is missing", "add " + std::string(key) + " = " + example);
      complete = false;
    }
    return at;
  };
  const Place name_at = required("name", "\"weight\"");
  const Place shape_at = required("shape", "[1024, 512]");
  const Place placements_at = required("placements", "\"S(0),R\"");
  const Place dtype_at = in(table, "dtype");
  if (!complete) return;
  TensorSpec tensor;
  const auto name = word(name_at, "\"weight\"");
  const auto shape = integers(shape_at, 0, std::numeric_limits<std::int64_t>::max(), "[1024, 512]");
  bool good = name && shape;
  if (dtype_at.node != nullptr) {
    const auto dtype = word(dtype_at, "\"f32\"");
    good = good && dtype;
    if (dtype) {
      tensor.dtype = *dtype;
      good = attempt(dtype_at, [&] { tensor.element_bytes = element_bytes_of(*dtype); }) && good;
    }
  }
  if (const toml::array* list = placements_at.node->as_array()) {
    for (const toml::node& node : *list) {
      const Place at{&node,
                     placements_at.key + "[" + std::to_string(tensor.placements.size()) + "]"};
      const auto text = word(at, "\"S(0)\"");
      if (!text || !attempt(at, [&] { tensor.placements.push_back(parse_placement(*text)); })) {
        return;
      }
    }
  } else {
    const auto text = word(placements_at, "\"S(0),R\"");
    if (!text || !attempt(placements_at, [&] { tensor.placements = parse_placements(*text); })) {
      return;
    }
  }
  if (const Place at = in(table, "only"); at.node != nullptr) {
    if (!is_table(at, "only = {pp = 1}")) return;
    for (const auto& [key, node] : *at.node->as_table()) {
      const std::string dim(key.str());
      const Place one{&node, at.key + "." + dim};
      const auto coordinate = integer(one, 0, limits_.ranks - 1);
      if (!coordinate) return;
      if (mesh_ && !attempt(one, [&] { (void)mesh_->at(dim, *coordinate); })) return;
      tensor.only.push_back({dim, *coordinate});
    }
  }
  if (!good) return;
  tensor.name = *name;
  tensor.shape = *shape;
  if (!tensor_names_.insert(tensor.name).second) {
    error(name_at, "tensor " + text::quoted(tensor.name) + " is listed twice",
          "give every tensor a name of its own");
    return;
  }
  if (!attempt(shape_at, [&] { (void)checked_bytes(tensor); })) return;
  if (mesh_) {
    attempt(placements_at, [&] {
      const TensorPlace place = place_of(*mesh_, tensor);
      Layout(place.mesh.shape(), tensor.shape, place.placements);
    });
  }
  tensors_.push_back(std::move(tensor));
}

void Reader::read_tensors(const Place& root) {
  const Place at = in(root, "tensor");
  if (at.node == nullptr) return;
  const toml::array* list = at.node->as_array();
  if (list == nullptr) {
    error(at, "is not a list of tables", "write [[tensor]] with name, shape, dtype and placements");
    return;
  }
  std::size_t i = 0;
  for (const toml::node& node : *list) read_tensor({&node, "tensor[" + std::to_string(i++) + "]"});
}

MeshFileResult Reader::read(std::string_view text) {
  MeshFileResult out;
  try {
    const toml::table table = toml::parse(text);
    const Place root{&table, ""};
    known_keys(root, {"mesh", "hosts", "host", "partners", "tensor"});
    read_mesh(root);
    read_hosts(root);
    read_partners(root);
    read_tensors(root);
  } catch (const toml::parse_error& e) {
    errors_.push_back(
        {static_cast<int>(e.source().begin.line), static_cast<int>(e.source().begin.column), "",
         "this is not TOML: " + text::printable(e.description()), "see https://toml.io"});
  }
  std::stable_sort(errors_.begin(), errors_.end(), [](const auto& a, const auto& b) {
    return std::pair(a.line, a.column) < std::pair(b.line, b.column);
  });
  out.errors = std::move(errors_);
  if (out.errors.empty()) {
    out.description = MeshDescription{std::move(*mesh_),   std::move(*domains_), partners_,
                                      std::move(holders_), explicit_holders_,    borrow_replicated_,
                                      std::move(tensors_)};
  }
  return out;
}

}  // namespace

MeshFileResult parse_mesh_file(std::string_view text, const MeshFileLimits& limits) {
  return Reader(limits).read(text);
}

}  // namespace meshstage
