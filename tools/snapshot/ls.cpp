// meshstage ls: the images on this host.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include <meshstage/core/generation/number.hpp>

#include "tools/snapshot/places.hpp"
#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

using Json = nlohmann::ordered_json;

std::string owner_text(const VaultListing& vault) {
  const std::string life = vault.owner_alive ? "alive" : "dead";
  return vault.owner_pid == 0 ? life : fmt::format("{} (pid {})", life, vault.owner_pid);
}

std::string state_text(const VaultListing& vault, const SlotInfo& slot) {
  std::string text(to_string(slot.state));
  if (!slot.damaged.empty()) text = "damaged header";
  return vault.newest ? text : text + ", superseded";
}

/// Of each job the runs that it has images of, each by its newest generation, ascending.
using Runs = std::map<std::string, std::vector<std::uint64_t>, std::less<>>;

Runs runs_of(const HostImages& images) {
  std::map<std::string, std::map<std::uint64_t, std::uint64_t>> found;
  const auto note = [&](const std::string& job, ImageId id) {
    if (!id.exists()) return;
    auto& newest = found[job][run_of(id.generation)];
    newest = std::max(newest, id.generation);
  };
  for (const auto& vault : images.vaults) {
    for (const auto& [key, slot] : vault.slots) {
      if (slot.state != SlotState::kEmpty) note(vault.job, slot.image.identity.id);
    }
  }
  for (const auto& file : images.files) note(file.name.job, file.name.id);
  Runs runs;
  for (const auto& [job, of_job] : found) {
    for (const auto& [run, newest] : of_job) runs[job].push_back(newest);
  }
  return runs;
}

/// Whether an image is of another run than its job's newest: its generation is shown whole then.
bool is_older_run(const Runs& runs, const std::string& job, std::uint64_t generation) {
  const auto of_job = runs.find(job);
  return of_job != runs.end() && !same_run(of_job->second.back(), generation);
}

std::string generation_cell(const Runs& runs, const std::string& job, std::uint64_t generation) {
  return std::to_string(is_older_run(runs, job, generation) ? generation
                                                            : generation_in_run(generation));
}

/// "own", or "replica" with whose memory it is in.
std::string role_text(int rank, int holder) {
  return rank == holder ? "own" : fmt::format("replica at {}", holder);
}

/// Of the image, or of its replica. The size of one that is being written is what is stored.
std::uint64_t stored(const VaultListing& vault, SlotKey key, const SlotInfo& slot) {
  return stored_bytes(key, vault.rank, slot.image);
}

Json slot_json(const VaultListing& vault, SlotKey key, const SlotInfo& slot) {
  Json json{{"owner_rank", key.owner_rank},
            {"index", key.index},
            {"state", std::string(to_string(slot.state))},
            {"capacity", slot.capacity}};
  if (!slot.damaged.empty()) json["damaged"] = slot.damaged;
  if (slot.state == SlotState::kEmpty) return json;
  const auto& i = slot.image.identity;
  json["generation"] = i.id.generation;
  json["step"] = i.id.step;
  json["world_size"] = i.world_size;
  json["image_bytes"] = slot.image.image_bytes;
  json["stored_bytes"] = stored(vault, key, slot);
  if (slot.state == SlotState::kSealed) json["name"] = image_name(i, vault.rank);
  return json;
}

Json to_json(const HostImages& images) {
  Json json{{"vaults", Json::array()}, {"files", Json::array()}};
  for (const auto& v : images.vaults) {
    Json vault{
        {"directory", v.directory.native()}, {"job", v.job},       {"rank", v.rank},
        {"incarnation", v.incarnation},      {"newest", v.newest}, {"owner_alive", v.owner_alive},
        {"owner_pid", v.owner_pid},          {"bytes", v.bytes},   {"slots", Json::array()}};
    for (const auto& [key, slot] : v.slots) vault["slots"].push_back(slot_json(v, key, slot));
    json["vaults"].push_back(std::move(vault));
  }
  for (const auto& f : images.files) {
    json["files"].push_back({{"path", f.path.native()},
                             {"job", f.name.job},
                             {"generation", f.name.id.generation},
                             {"step", f.name.id.step},
                             {"rank", f.name.rank},
                             {"world_size", f.name.world_size},
                             {"holder", f.name.writer()},
                             {"bytes", f.bytes}});
  }
  return json;
}

void add_vault(Columns& columns, const VaultListing& vault, const Runs& runs) {
  const std::string job = printable(vault.job);
  if (vault.slots.empty()) {
    columns.add({job, "", "", fmt::format("{}", vault.rank), "own",
                 vault.newest ? "no image yet" : "superseded", size_text(vault.bytes),
                 owner_text(vault), ""});
  }
  for (const auto& [key, slot] : vault.slots) {
    const auto& i = slot.image.identity;
    const bool known = slot.state != SlotState::kEmpty;
    const bool sealed = slot.state == SlotState::kSealed;
    columns.add(
        {job, known ? generation_cell(runs, vault.job, i.id.generation) : "",
         known ? std::to_string(i.id.step) : "",
         known ? fmt::format("{} of {}", key.owner_rank, i.world_size)
               : std::to_string(key.owner_rank),
         role_text(key.owner_rank, vault.rank), state_text(vault, slot),
         size_text(known ? stored(vault, key, slot) : slot.capacity), owner_text(vault),
         sealed ? image_name(i, vault.rank, is_older_run(runs, vault.job, i.id.generation)) : ""});
  }
}

void add_file(Columns& columns, const PersistedImage& file, const Runs& runs) {
  const auto& n = file.name;
  columns.add({printable(n.job), generation_cell(runs, n.job, n.id.generation),
               std::to_string(n.id.step), fmt::format("{} of {}", n.rank, n.world_size),
               role_text(n.rank, n.writer()), "on disk", size_text(file.bytes), "-",
               printable(file.path.native(), 1000)});
}

}  // namespace

int list_snapshots(const LsOptions& options, std::ostream& out) {
  const auto images = find_images(options.places, options.job);
  if (options.json) {
    print_json(out, to_json(images));
    return 0;
  }
  if (images.vaults.empty() && images.files.empty()) {
    out << "no vaults and no persisted images"
        << (options.job.empty() ? "" : " of job \"" + printable(options.job) + "\"") << " in "
        << places_text(options.places) << "\n";
    if (options.places.directories.empty()) {
      out << "Name the directory of a job that has another one: meshstage ls DIR\n";
    }
    return 0;
  }
  using Align = Columns::Align;
  Columns columns({"JOB", "GENERATION", "STEP", "RANK", "COPY", "STATE", "SIZE", "OWNER", "NAME"},
                  {Align::kLeft, Align::kRight, Align::kRight, Align::kLeft, Align::kLeft,
                   Align::kLeft, Align::kRight});
  const Runs runs = runs_of(images);
  std::uint64_t vault_bytes = 0, file_bytes = 0;
  for (const auto& vault : images.vaults) {
    add_vault(columns, vault, runs);
    vault_bytes += vault.bytes;
  }
  for (const auto& file : images.files) {
    add_file(columns, file, runs);
    file_bytes += file.bytes;
  }
  columns.print(out);
  out << "\n"
      << count_text(images.vaults.size(), "vault") << " of " << size_text(vault_bytes) << ", "
      << count_text(images.files.size(), "file") << " of " << size_text(file_bytes) << "\n";
  for (const auto& [job, of_job] : runs) {
    if (of_job.size() < 2) continue;
    out << fmt::format("job {} has images of {}, which are never put together:\n", printable(job),
                       count_text(of_job.size(), "run"));
    for (const std::uint64_t newest : of_job) {
      out << fmt::format("  {}: up to generation {} ({})\n", run_text(newest),
                         generation_in_run(newest), newest);
    }
  }
  return 0;
}

}  // namespace meshstage::tools
