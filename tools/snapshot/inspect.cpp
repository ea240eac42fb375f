// meshstage inspect: what is in a snapshot.
#include <fmt/format.h>

#include <ostream>
#include <unordered_set>

#include "tools/snapshot/entries.hpp"
#include "tools/snapshot/open.hpp"
#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

using Json = nlohmann::ordered_json;

struct Totals {
  std::uint64_t tensors = 0, storages = 0, bytes = 0;
};

Totals count(const std::vector<Entry>& entries) {
  Totals totals;
  std::unordered_set<std::size_t> seen;
  for (const auto& e : entries) {
    if (!e.is_tensor()) continue;
    ++totals.tensors;
    if (!seen.insert(e.storage).second) continue;
    ++totals.storages;
    totals.bytes += e.storage_bytes;
  }
  return totals;
}

Json id_json(ImageId id) {
  if (!id.exists()) return nullptr;
  return {{"generation", id.generation}, {"step", id.step}};
}

/// What other ranks have too.
Json borrowed_json(const Snapshot& snapshot) {
  Json json = Json::array();
  for (const auto& part : snapshot.borrowed) {
    Json storages = Json::array();
    for (const auto& piece : part.pieces)
      storages.push_back({{"name", piece.name}, {"bytes", piece.bytes}});
    json.push_back({{"rank", part.rank}, {"storages", std::move(storages)}});
  }
  return json;
}

Json head_json(const Snapshot& snapshot, const Totals& totals) {
  Json json{{"name", snapshot.name}, {"kind", snapshot.image ? "image" : "safetensors"}};
  if (snapshot.image) {
    const auto& i = snapshot.image->identity;
    json["job"] = i.job;
    json["rank"] = i.rank;
    json["world_size"] = i.world_size;
    json["generation"] = i.id.generation;
    json["step"] = i.id.step;
    json["base"] = id_json(i.base);
    json["manifest_bytes"] = snapshot.image->manifest_bytes;
    json["manifest_digest"] = to_hex(snapshot.image->manifest_digest);
    json["image_digest"] = to_hex(snapshot.image->image_digest);
    json["replica_without_borrowed"] = snapshot.without_borrowed();
    json["borrowed"] = borrowed_json(snapshot);
  } else {
    json["metadata"] = Json::object();
    for (const auto& [key, text] : snapshot.metadata()) json["metadata"][key] = text;
  }
  json["file_bytes"] = snapshot.file_bytes();
  json["tensors"] = totals.tensors;
  json["storages"] = totals.storages;
  json["storage_bytes"] = totals.bytes;
  return json;
}

void print_head(const Snapshot& snapshot, const Totals& totals, std::ostream& out) {
  out << snapshot.name << ": " << snapshot.describe() << "\n";
  out << count_text(totals.tensors, "tensor") << " in " << count_text(totals.storages, "storage")
      << " of " << size_text(totals.bytes) << "; " << size_text(snapshot.file_bytes()) << " in all";
  if (snapshot.image) {
    out << "; base: " << to_string(snapshot.image->identity.base)
        << "; digest: " << to_hex(snapshot.image->image_digest);
  }
  out << "\n";
  for (const auto& part : snapshot.borrowed) {
    std::uint64_t bytes = 0;
    for (const auto& piece : part.pieces) bytes += piece.bytes;
    const auto what = count_text(part.pieces.size(), "storage");
    out << what << " of " << size_text(bytes) << " borrowed from rank " << part.rank
        << (snapshot.without_borrowed() ? ", not in this replica\n" : ", left out of replicas\n");
  }
  if (snapshot.image) return;
  for (const auto& [key, text] : snapshot.metadata()) {
    out << "metadata " << printable(key, 60) << " = " << printable(text, 120) << "\n";
  }
}

void print_tree(const std::vector<Entry>& entries, std::size_t levels, std::ostream& out) {
  using Align = Columns::Align;
  Columns columns({}, {Align::kLeft, Align::kLeft, Align::kRight, Align::kLeft});
  for (const auto& e : entries) {
    if (e.depth >= levels) continue;
    auto label =
        std::string(2 * e.depth, ' ') + (e.label.empty() ? "\"\"" : printable(e.label, 80));
    columns.add(
        {std::move(label), e.describe(), e.is_tensor() ? size_text(e.bytes) : "", e.note()});
  }
  if (columns.empty()) return;
  out << "\n";
  columns.print(out);
}

}  // namespace

int inspect_snapshot(const InspectOptions& options, std::ostream& out) {
  const auto snapshot = open_snapshot(options.snapshot, options.places, Content::kStructure);
  auto entries = list_entries(snapshot, Repeat::kOnce);
  keep_below(entries, options.path);
  const auto totals = count(entries);
  const auto levels = options.depth.value_or(SIZE_MAX);
  if (!options.json) {
    print_head(snapshot, totals, out);
    print_tree(entries, levels, out);
    return 0;
  }
  auto json = head_json(snapshot, totals);
  auto& list = json["entries"] = Json::array();
  for (const auto& e : entries) {
    if (e.depth < levels) list.push_back(e.to_json());
  }
  print_json(out, json);
  return 0;
}

}  // namespace meshstage::tools
