#include "tools/snapshot/open.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <tuple>
#include <vector>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/safetensors_dict.hpp>
#include <meshstage/core/memory/resource.hpp>
#include <meshstage/core/memory/room.hpp>

#include "tools/snapshot/places.hpp"
#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

namespace fs = std::filesystem;

// FORMAT.md, "Names": the entries that an image has besides its storages and their padding.
constexpr const char* kValuesName = "__meshstage__.values";
constexpr const char* kTrailerName = "__meshstage__.trailer";
constexpr std::uint64_t kPieceBytes = std::uint64_t{8} << 20U;

/// Zeroed memory; what is never written takes none.
std::shared_ptr<std::byte> zeroed(std::uint64_t bytes) {
  auto* const data = static_cast<std::byte*>(host_memory().allocate(bytes, kHostAlignment));
  if (bytes < kHugePageBytes) std::memset(data, 0, bytes);  // larger ones are fresh mappings
  return {data, [bytes](std::byte* p) { host_memory().deallocate(p, bytes, kHostAlignment); }};
}

struct Range {
  std::uint64_t begin = 0, end = 0;
};

Range entry_range(const SafetensorsIndex& index, const char* name) {
  const auto* entry = index.find(name);
  if (entry == nullptr) throw CorruptData(fmt::format("the image has no entry \"{}\"", name));
  return {index.data_begin() + entry->begin, index.data_begin() + entry->end};
}

/// A slot's image in memory of our own: its owner, if one lives, may overwrite it at any time.
class SlotCopy {
 public:
  SlotCopy(const SlotFile& file, const ImageInfo& info)
      : file_(file), bytes_(info.image_bytes), data_(zeroed(info.image_bytes)) {}

  void read(Range range) {
    for (auto at = range.begin; at < range.end; at += kPieceBytes) {
      const auto size = std::min(kPieceBytes, range.end - at);
      file_.read_image({data_.get() + at, size}, at);
    }
  }
  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_.get(), bytes_}; }
  [[nodiscard]] std::shared_ptr<const void> owner() const { return data_; }

 private:
  const SlotFile& file_;
  std::uint64_t bytes_;
  std::shared_ptr<std::byte> data_;
};

std::string slot_text(const VaultListing& vault, SlotKey key) {
  return fmt::format("slot {} for rank {} in the vault of job \"{}\", rank {}", key.index,
                     key.owner_rank, vault.job, vault.rank);
}

std::shared_ptr<const OpenSlot> find_slot(const VaultListing& vault, SlotKey key) {
  auto slot = std::make_shared<OpenSlot>(OpenSlot{.file = SlotFile::open(vault, key), .info = {}});
  const SlotInfo now = slot->file.info();
  if (now.state != SlotState::kSealed) {
    throw InvalidState(slot_text(vault, key) + " is " + std::string(to_string(now.state)) +
                       ", not sealed" + (now.damaged.empty() ? "" : ": " + now.damaged));
  }
  slot->info = now.image;
  if (now.image.image_bytes > now.capacity || now.image.manifest_bytes > now.image.image_bytes ||
      now.image.block_bytes == 0) {
    throw CorruptData(slot_text(vault, key) + ": its header says " +
                      std::to_string(now.image.image_bytes) + " bytes, the file has " +
                      std::to_string(now.capacity));
  }
  return slot;
}

/// Copies manifest, values and trailer; returns where the trailer begins.
std::uint64_t read_structure(SlotCopy& copy, const ImageInfo& info) {
  copy.read({0, info.manifest_bytes});
  const auto index =
      SafetensorsIndex::parse_front(copy.bytes().first(info.manifest_bytes), info.image_bytes);
  copy.read(entry_range(index, kValuesName));
  const auto trailer = entry_range(index, kTrailerName);
  copy.read(trailer);
  return trailer.begin;
}

struct Candidate {
  ImageIdentity identity;
  bool in_vault = false;
  const VaultListing* vault = nullptr;
  SlotKey key;
  const PersistedImage* file = nullptr;
  int holder = 0;
};

/// The nearest copy of the newest image of that name.
std::optional<Candidate> choose(const HostImages& images, const ImageName& name) {
  std::optional<Candidate> best;
  const auto rank_of = [](const Candidate& c) {
    const bool newest = c.vault != nullptr && c.vault->newest;
    return std::tuple(c.identity.id, c.in_vault, newest, c.holder == c.identity.rank);
  };
  const auto offer = [&](const Candidate& c) {
    if (c.identity.job != name.job || c.identity.rank != name.rank) return;
    if (name.step && c.identity.id.step != *name.step) return;
    if (name.generation && c.identity.id.generation != *name.generation) return;
    if (name.holder && c.holder != *name.holder) return;
    if (!best || rank_of(c) > rank_of(*best)) best = c;
  };
  for (const auto& vault : images.vaults) {
    for (const auto& [key, info] : vault.slots) {
      if (info.state != SlotState::kSealed) continue;
      offer({.identity = info.image.identity,
             .in_vault = true,
             .vault = &vault,
             .key = key,
             .file = nullptr,
             .holder = vault.rank});
    }
  }
  for (const auto& file : images.files) {
    Candidate c{.identity = {},
                .in_vault = false,
                .vault = nullptr,
                .key = {},
                .file = &file,
                .holder = file.name.writer()};
    c.identity.job = file.name.job;
    c.identity.rank = file.name.rank;
    c.identity.id = file.name.id;
    offer(c);
  }
  return best;
}

}  // namespace

void OpenSlot::check_unchanged() const {
  const SlotInfo now = file.info();
  if (now.state != SlotState::kSealed || !(now.image == info)) {
    throw InvalidState("the slot " + file.path().native() + " of " + to_string(info.identity) +
                       " was overwritten while it was read; try again");
  }
}

Value Snapshot::state() const {
  return image ? decode_image(bytes, owner) : Value(decode_safetensors(bytes, owner));
}

std::string Snapshot::describe() const {
  return image ? "image of " + to_string(image->identity) : "safetensors file, no image of ours";
}

Snapshot open_file(const fs::path& path) {
  const auto file = MappedFile::open(real_file_system(), path);
  Snapshot snapshot{.name = printable(path.native()),
                    .bytes = file->bytes(),
                    .owner = file,
                    .index = SafetensorsIndex::parse(file->bytes()),
                    .image = {},
                    .slot = nullptr,
                    .path = path};
  if (is_image(snapshot.index)) snapshot.image = read_info(snapshot.bytes);
  return snapshot;
}

Snapshot open_slot(const VaultListing& vault, SlotKey key, Content content) {
  const auto slot = find_slot(vault, key);
  if (content == Content::kAll) {
    check_room({.what = "a copy of " + slot_text(vault, key),
                .bytes_per_rank = slot->info.image_bytes,
                .local_ranks = 1},
               read_room_limits(real_file_system(), {}));
  }
  SlotCopy copy(slot->file, slot->info);
  if (content == Content::kAll) {
    copy.read({0, slot->info.image_bytes});
  } else {
    read_structure(copy, slot->info);
  }
  slot->check_unchanged();
  return {.name = image_name(slot->info.identity, vault.rank),
          .bytes = copy.bytes(),
          .owner = copy.owner(),
          .index = SafetensorsIndex::parse(copy.bytes()),
          .image = read_info(copy.bytes()),
          .slot = slot,
          .path = {}};
}

Snapshot open_snapshot(const std::string& what, const Places& places, Content content) {
  std::error_code error;
  const auto status = fs::status(what, error);
  if (fs::is_directory(status)) {
    throw InvalidArgument(
        "\"" + printable(what) +
        "\" is a directory; give a file or an image, as meshstage ls prints them");
  }
  if (fs::is_regular_file(status)) return open_file(what);
  if (fs::exists(status)) {
    throw InvalidArgument("\"" + printable(what) + "\" is not a regular file");
  }
  const auto name = parse_image_name(what);
  if (!name) {
    throw make_error<NotFound>("there is no file \"" + printable(what) +
                                   "\"; images in vaults are named JOB/RANK[@[GENERATION.]STEP]"
                                   "[:HOLDER], as meshstage ls prints them",
                               {}, {}, what);
  }
  const auto images = find_images(places, name->job);
  const auto chosen = choose(images, *name);
  if (!chosen) {
    throw make_error<NotFound>("there is no file \"" + printable(what) +
                                   "\", and no sealed or persisted image of that name on this "
                                   "host; meshstage ls lists them",
                               {}, {}, what);
  }
  return chosen->in_vault ? open_slot(*chosen->vault, chosen->key, content)
                          : open_file(chosen->file->path);
}

ImageInfo verify_slot(const VaultListing& vault, SlotKey key) {
  const auto slot = find_slot(vault, key);
  SlotCopy copy(slot->file, slot->info);
  const auto verify = [&] {
    const auto trailer_begin = read_structure(copy, slot->info);
    const auto data_begin = slot->info.manifest_bytes;
    if (trailer_begin < data_begin) throw CorruptData("the trailer begins before the data");
    const auto block_bytes = read_info(copy.bytes()).block_bytes;
    BlockDigests digests(block_bytes, trailer_begin - data_begin);
    std::vector<std::byte> block(std::min(block_bytes, slot->info.image_bytes));
    for (std::size_t i = 0; i < digests.block_count(); ++i) {
      const auto bytes = std::span(block).first(digests.block_size(i));
      slot->file.read_image(bytes, data_begin + i * block_bytes);
      digests.add(i, bytes);
    }
    return check_blocks(copy.bytes(), digests);
  };
  try {
    const auto info = verify();
    slot->check_unchanged();
    if (!(info == slot->info)) {
      throw CorruptData(slot_text(vault, key) + ": its header says " +
                        to_string(slot->info.identity) + ", the image " + to_string(info.identity));
    }
    return info;
  } catch (const CorruptData&) {
    slot->check_unchanged();  // if it was overwritten, that is why
    throw;
  }
}

}  // namespace meshstage::tools
