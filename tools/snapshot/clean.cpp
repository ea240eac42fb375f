// meshstage clean: the vaults that nobody owns any more.
#include <fmt/format.h>

#include <ostream>
#include <set>
#include <tuple>

#include <meshstage/core/error/error.hpp>

#include "tools/snapshot/places.hpp"
#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

struct Sorted {
  std::vector<VaultListing> removable;
  std::vector<VaultListing> kept;  ///< Of dead owners, but the job lives.
};

/// A dead rank of a living job is about to be replaced: its vault is what it recovers from.
Sorted sort_out(std::vector<VaultListing> vaults) {
  std::set<std::pair<std::filesystem::path, std::string>> living;
  for (const auto& v : vaults) {
    if (v.owner_alive) living.emplace(v.directory, v.job);
  }
  Sorted sorted;
  for (auto& v : vaults) {
    if (v.owner_alive) continue;
    const bool keep = living.contains({v.directory, v.job});
    (keep ? sorted.kept : sorted.removable).push_back(std::move(v));
  }
  return sorted;
}

std::string newest_image(const VaultListing& vault) {
  ImageId newest = kNoImage;
  for (const auto& [key, slot] : vault.slots) {
    if (slot.state == SlotState::kSealed) newest = std::max(newest, slot.image.identity.id);
  }
  return newest.exists() ? to_string(newest) : "no image";
}

std::uint64_t total(const std::vector<VaultListing>& vaults) {
  std::uint64_t bytes = 0;
  for (const auto& v : vaults) bytes += v.bytes;
  return bytes;
}

void print_list(const Sorted& sorted, std::ostream& out) {
  using Align = Columns::Align;
  Columns columns({}, {Align::kLeft, Align::kRight, Align::kRight, Align::kLeft});
  const auto add = [&](const VaultListing& v, const std::string& note) {
    columns.add({"job " + printable(v.job), fmt::format("rank {}", v.rank), size_text(v.bytes),
                 newest_image(v), printable(v.directory.native(), 1000), note});
  };
  for (const auto& v : sorted.removable) add(v, "");
  for (const auto& v : sorted.kept) add(v, "kept: ranks of this job live");
  columns.print(out);
}

nlohmann::ordered_json to_json(const VaultListing& v) {
  return {{"directory", v.directory.native()},
          {"job", v.job},
          {"rank", v.rank},
          {"incarnation", v.incarnation},
          {"bytes", v.bytes}};
}

}  // namespace

int clean_vaults(const CleanOptions& options, const Confirm& confirm, std::ostream& out) {
  const auto sorted = sort_out(find_vaults(options.places, options.job));
  const auto what = fmt::format("{} of {}", count_text(sorted.removable.size(), "vault"),
                                size_text(total(sorted.removable)));
  if (!options.json) print_list(sorted, out);
  bool agreed = options.yes || sorted.removable.empty();
  if (!agreed && confirm && !options.json) agreed = confirm("Remove " + what + "?");

  std::uint64_t freed = 0;
  std::vector<std::string> problems;
  auto removed = nlohmann::ordered_json::array();
  if (agreed) {
    for (const auto& v : sorted.removable) {
      try {
        freed += remove_vault(v);
        removed.push_back(to_json(v));
      } catch (const InvalidState& e) {  // it was taken over just now
        problems.push_back(printable(e.what(), 500));
      }
    }
  }
  if (options.json) {
    nlohmann::ordered_json json{{"removable", nlohmann::ordered_json::array()},
                                {"removed", std::move(removed)},
                                {"freed", freed},
                                {"kept", nlohmann::ordered_json::array()},
                                {"problems", problems}};
    for (const auto& v : sorted.removable) json["removable"].push_back(to_json(v));
    for (const auto& v : sorted.kept) json["kept"].push_back(to_json(v));
    print_json(out, json);
    return agreed ? 0 : 1;
  }
  for (const auto& problem : problems) out << "kept: " << problem << "\n";
  if (sorted.removable.empty()) {
    out << "nothing to clean\n";
  } else if (agreed) {
    out << fmt::format("removed {}, {} freed\n", count_text(removed.size(), "vault"),
                       size_text(freed));
  } else {
    out << "nothing removed; " << what << " can be: meshstage clean --yes\n";
  }
  return agreed ? 0 : 1;
}

}  // namespace meshstage::tools
