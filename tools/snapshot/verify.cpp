// meshstage verify: every digest.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <ostream>
#include <system_error>

#include "tools/snapshot/open.hpp"
#include "tools/snapshot/places.hpp"
#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

namespace fs = std::filesystem;

struct Finding {
  enum class Result : std::uint8_t {
    kOk,
    kDamaged,
    kNoDigests,
    kSkipped  ///< Being written, or overwritten meanwhile: nothing to say about it.
  };
  std::string name;
  Result result = Result::kOk;
  std::string detail;
  std::uint64_t bytes = 0;
  bool by_name = false;  ///< Asked for itself, not as one of many.
};

std::string to_text(Finding::Result result) {
  switch (result) {
    case Finding::Result::kOk:
      return "ok";
    case Finding::Result::kDamaged:
      return "DAMAGED";
    case Finding::Result::kNoDigests:
      return "no digests";
    case Finding::Result::kSkipped:
      return "skipped";
  }
  return "?";
}

/// Runs `check`, which returns what was verified.
template <class Check>
Finding finding(std::string name, Check check) {
  Finding f;
  f.name = std::move(name);
  try {
    const ImageInfo info = check();
    f.bytes = info.image_bytes;
    f.detail = to_string(info.identity);
  } catch (const CorruptData& e) {
    f.result = Finding::Result::kDamaged;
    f.detail = printable(e.what(), 500);
  } catch (const InvalidState& e) {
    f.result = Finding::Result::kSkipped;
    f.detail = printable(e.what(), 500);
  }
  return f;
}

/// A published name promises whose image it is.
void check_name(const fs::path& path, const ImageInfo& info) {
  const auto name = parse_file_name(path.filename().native());
  if (!name) return;
  const auto& i = info.identity;
  if (name->job == i.job && name->id == i.id && name->rank == i.rank &&
      name->world_size == i.world_size) {
    return;
  }
  throw CorruptData("the file's name is that of another image; the file is: " + to_string(i));
}

Finding verify_file(const fs::path& path) {
  bool plain = false, several = false;
  auto f = finding(printable(path.native(), 1000), [&] {
    const auto snapshot = open_file(path);
    plain = !snapshot.image;
    several = !snapshot.files.empty();
    if (plain) {
      static_cast<void>(snapshot.state());  // it can be read
      ImageInfo sizes;
      sizes.image_bytes = snapshot.file_bytes();
      return sizes;
    }
    const auto info = verify_image(snapshot.bytes);
    check_name(path, info);
    return info;
  });
  if (plain && f.result == Finding::Result::kOk) {
    f.result = Finding::Result::kNoDigests;
    f.detail = several ? "sound safetensors files of another program"
                       : "a sound safetensors file of another program";
  }
  return f;
}

Finding verify_slot_of(const VaultListing& vault, SlotKey key, const SlotInfo& slot) {
  const auto place =
      fmt::format("{}/{} slot {}:{}", vault.job, key.owner_rank, key.index, vault.rank);
  if (!slot.damaged.empty()) {
    return {place, Finding::Result::kDamaged, "its header: " + printable(slot.damaged), 0, false};
  }
  if (slot.state != SlotState::kSealed) {
    return {place, Finding::Result::kSkipped, std::string(to_string(slot.state)), 0, false};
  }
  auto f =
      finding(image_name(slot.image.identity, vault.rank), [&] { return verify_slot(vault, key); });
  const auto stored = stored_bytes(key, vault.rank, slot.image);
  if (f.result == Finding::Result::kOk && stored != slot.image.image_bytes) {
    f.bytes = stored;
    f.detail += ", without borrowed tensors";
  }
  return f;
}

void verify_places(const Places& places, std::vector<Finding>& findings) {
  const auto images = find_images(places, "");
  for (const auto& vault : images.vaults) {
    for (const auto& [key, slot] : vault.slots) {
      if (slot.state == SlotState::kEmpty && slot.damaged.empty()) continue;
      findings.push_back(verify_slot_of(vault, key, slot));
    }
  }
  for (const auto& file : images.files) findings.push_back(verify_file(file.path));
}

/// Every copy of the image of that name.
void verify_name(const std::string& what, const Places& places, std::vector<Finding>& findings) {
  const auto snapshot = open_snapshot(what, places, Content::kStructure);
  if (!snapshot.slot) {  // on disk
    findings.push_back(verify_file(snapshot.path));
    return;
  }
  const auto name = parse_image_name(what);
  for (const auto& vault : find_vaults(places, snapshot.image->identity.job)) {
    if (name && name->holder && vault.rank != *name->holder) continue;
    for (const auto& [key, slot] : vault.slots) {
      if (slot.state == SlotState::kSealed && slot.image.identity == snapshot.image->identity) {
        findings.push_back(verify_slot_of(vault, key, slot));
      }
    }
  }
}

void print_text(const std::vector<Finding>& findings, std::ostream& out) {
  using Align = Columns::Align;
  Columns columns({}, {Align::kLeft, Align::kLeft, Align::kRight, Align::kLeft});
  std::uint64_t bytes = 0;
  std::size_t ok = 0, skipped = 0;
  for (const auto& f : findings) {
    columns.add({to_text(f.result), f.name, f.bytes == 0 ? "" : size_text(f.bytes), f.detail});
    ok += f.result == Finding::Result::kOk ? 1 : 0;
    skipped += f.result == Finding::Result::kSkipped ? 1 : 0;
    bytes += f.result == Finding::Result::kOk ? f.bytes : 0;
  }
  columns.print(out);
  out << "\n" << fmt::format("{} ok ({})", ok, size_text(bytes));
  if (skipped > 0) out << fmt::format(", {} skipped", skipped);
  if (const auto bad = findings.size() - ok - skipped; bad > 0) out << fmt::format(", {} not", bad);
  out << "\n";
}

std::string searched(const VerifyOptions& options) {
  auto places = options.snapshots;
  for (const auto& directory : options.places.directories) places.push_back(directory.native());
  Places all;
  all.directories.assign(places.begin(), places.end());
  return places_text(all);
}

}  // namespace

int verify_snapshots(const VerifyOptions& options, std::ostream& out) {
  std::vector<Finding> findings;
  if (options.snapshots.empty()) verify_places(options.places, findings);
  for (const auto& what : options.snapshots) {
    std::error_code error;
    if (fs::is_directory(what, error)) {
      verify_places({{what}}, findings);
      continue;
    }
    const auto before = findings.size();
    if (fs::is_regular_file(what, error)) {
      findings.push_back(verify_file(what));
    } else {
      verify_name(what, options.places, findings);
    }
    for (auto i = before; i < findings.size(); ++i) findings[i].by_name = true;
  }
  // What was asked for by name must have been checked, and something must have been found.
  const bool good =
      !findings.empty() && std::all_of(findings.begin(), findings.end(), [](const Finding& f) {
        return f.result == Finding::Result::kOk ||
               (!f.by_name && f.result == Finding::Result::kSkipped);
      });
  if (options.json) {
    nlohmann::ordered_json json{{"good", good}, {"images", nlohmann::ordered_json::array()}};
    for (const auto& f : findings) {
      json["images"].push_back({{"name", f.name},
                                {"result", to_text(f.result)},
                                {"detail", f.detail},
                                {"bytes", f.bytes}});
    }
    print_json(out, json);
  } else if (findings.empty()) {
    out << "nothing was verified: no image was found in " << searched(options) << "\n";
  } else {
    print_text(findings, out);
  }
  return good ? 0 : 1;
}

}  // namespace meshstage::tools
