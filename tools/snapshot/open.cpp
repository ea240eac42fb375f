#include "tools/snapshot/open.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <string_view>
#include <tuple>
#include <vector>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/state_file.hpp>
#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/safetensors_dict.hpp>
#include <meshstage/core/memory/resource.hpp>
#include <meshstage/core/memory/room.hpp>

#include "tools/command/command.hpp"
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
  enum class Form : std::uint8_t {
    kImage,  ///< What the slot lacks reads as zeros.
    kStored
  };
  SlotCopy(const OpenSlot& slot, Form form)
      : slot_(slot),
        left_out_(form == Form::kStored ? slot.left_out : 0),
        bytes_(slot.info.image_bytes - left_out_),
        data_(zeroed(bytes_)) {}

  /// A range of the whole image. Throws CorruptData if the slot does not have all of it.
  void read(Range range) {
    const bool before = range.end <= slot_.info.manifest_bytes;
    if (!before && slot_.left_out != 0 &&
        range.begin < slot_.info.manifest_bytes + slot_.left_out) {
      throw CorruptData(fmt::format("bytes {} to {} of the image are not in its replica",
                                    range.begin, range.end));
    }
    for (auto at = range.begin; at < range.end; at += kPieceBytes) {
      const auto size = std::min(kPieceBytes, range.end - at);
      auto* const to = data_.get() + at - (before ? 0 : left_out_);
      slot_.file.read_image({to, size}, at - (before ? 0 : slot_.left_out));
    }
  }
  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_.get(), bytes_}; }
  [[nodiscard]] std::shared_ptr<const void> owner() const { return data_; }

 private:
  const OpenSlot& slot_;
  std::uint64_t left_out_;
  std::uint64_t bytes_;
  std::shared_ptr<std::byte> data_;
};

std::string slot_text(const VaultListing& vault, SlotKey key) {
  return fmt::format("slot {} for rank {} in the vault of job \"{}\", rank {}", key.index,
                     key.owner_rank, vault.job, vault.rank);
}

std::shared_ptr<const OpenSlot> find_slot(const VaultListing& vault, SlotKey key) {
  auto slot = std::make_shared<OpenSlot>(
      OpenSlot{.file = SlotFile::open(vault, key), .info = {}, .left_out = 0});
  const SlotInfo now = slot->file.info();
  if (now.state != SlotState::kSealed) {
    throw InvalidState(slot_text(vault, key) + " is " + std::string(to_string(now.state)) +
                       ", not sealed" + (now.damaged.empty() ? "" : ": " + now.damaged));
  }
  slot->info = now.image;
  const auto stored = stored_bytes(key, vault.rank, now.image);
  if (stored > now.capacity || now.image.manifest_bytes > stored || now.image.block_bytes == 0) {
    throw CorruptData(slot_text(vault, key) + ": its header says " + std::to_string(stored) +
                      " bytes, the file has " + std::to_string(now.capacity));
  }
  slot->left_out = now.image.image_bytes - stored;
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

/// The manifest need not be read where nothing is borrowed.
std::vector<BorrowedPart> borrowed_in(std::span<const std::byte> image_or_replica,
                                      const ImageInfo& info) {
  if (info.borrowed_bytes == 0) return {};
  return borrowed_parts(image_or_replica, info);
}

/// "model.wte and 2 more (12.0 MiB), which rank 1 has".
std::string borrowed_text(const std::vector<BorrowedPart>& parts) {
  std::string text;
  for (const auto& part : parts) {
    std::uint64_t bytes = 0;
    for (const auto& piece : part.pieces) bytes += piece.bytes;
    text += (text.empty() ? "" : ", and without ") + printable(part.pieces.front().name);
    if (part.pieces.size() > 1) text += fmt::format(" and {} more", part.pieces.size() - 1);
    text += fmt::format(" ({}), which rank {} has", size_text(bytes), part.rank);
  }
  return text;
}

/// Of a replica not all can be had: says who has the rest.
[[noreturn]] void refuse_replica(const VaultListing& vault, const OpenSlot& slot) {
  SlotCopy copy(slot, SlotCopy::Form::kStored);
  copy.read({0, slot.info.manifest_bytes});
  const auto parts = borrowed_parts(copy.bytes(), slot.info);
  slot.check_unchanged();
  const auto& i = slot.info.identity;
  throw make_error<InvalidArgument>(
      image_name(i, vault.rank) + " is a replica without " + borrowed_text(parts) + "; name rank " +
          std::to_string(i.rank) + "'s own image (" + image_name(i, i.rank) +
          ", or a file), or let the job recover it first",
      i.rank, i.id.step);
}

struct Candidate {
  ImageIdentity identity;
  bool in_vault = false;
  const VaultListing* vault = nullptr;
  SlotKey key;
  const PersistedImage* file = nullptr;
  int holder = 0;
  bool whole = true;  ///< Nothing is left out of it.
};

/// The nearest copy of the newest image of that name.
std::optional<Candidate> choose(const HostImages& images, const ImageName& name, Content content) {
  std::optional<Candidate> best;
  const auto rank_of = [content](const Candidate& c) {
    const bool newest = c.vault != nullptr && c.vault->newest;
    return std::tuple(c.identity.id, c.whole || content == Content::kStructure, c.in_vault, newest,
                      c.holder == c.identity.rank);
  };
  const auto offer = [&](const Candidate& c) {
    if (c.identity.job != name.job || c.identity.rank != name.rank) return;
    if (name.step && c.identity.id.step != *name.step) return;
    const std::uint64_t generation = c.identity.id.generation;
    if (name.generation && generation != *name.generation &&
        generation_in_run(generation) != *name.generation) {
      return;
    }
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
             .holder = vault.rank,
             .whole = vault.rank == key.owner_rank || info.image.borrowed_bytes == 0});
    }
  }
  for (const auto& file : images.files) {
    Candidate c{.identity = {},
                .in_vault = false,
                .vault = nullptr,
                .key = {},
                .file = &file,
                .holder = file.name.writer(),
                .whole = true};
    c.identity.job = file.name.job;
    c.identity.rank = file.name.rank;
    c.identity.id = file.name.id;
    offer(c);
  }
  return best;
}

/// What `read` returns; what it finds damaged is said of `name`.
template <class Read>
auto naming(const std::string& name, Read&& read) {
  try {
    return read();
  } catch (const CorruptData& e) {
    if (std::string_view(e.what()).find(name) != std::string_view::npos) throw;
    throw CorruptData(name + ": " + e.message());
  }
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
  return naming(name, [this] {
    if (bytes.empty()) return load_state_file(real_file_system(), path);
    return image ? decode_image(bytes, owner) : Value(decode_safetensors(bytes, owner));
  });
}

std::string Snapshot::describe() const {
  if (bytes.empty()) {
    return "index of " + count_text(files.size(), "safetensors file") + ", no image of ours";
  }
  return image ? "image of " + to_string(image->identity) : "safetensors file, no image of ours";
}

std::uint64_t Snapshot::file_bytes() const noexcept {
  std::uint64_t sum = bytes.size();
  for (const auto& file : files) sum += file.bytes.size();
  return sum;
}

std::vector<std::pair<std::string, std::string>> Snapshot::metadata() const {
  auto all = index.metadata();
  std::set<std::string> seen;
  for (const auto& file : files) {
    for (const auto& [key, text] : file.index.metadata()) {
      if (seen.insert(key).second) all.emplace_back(key, text);
    }
  }
  return all;
}

std::optional<std::string> Snapshot::find_metadata(std::string_view key) const {
  if (const auto text = index.find_metadata(key)) return std::string(*text);
  for (const auto& file : files) {
    if (const auto text = file.index.find_metadata(key)) return std::string(*text);
  }
  return std::nullopt;
}

namespace {

/// One file; what an image is taken for in a file that an index names, is a safetensors file.
Snapshot open_one_file(const fs::path& path, bool may_be_image) {
  const auto file = MappedFile::open(real_file_system(), path);
  Snapshot snapshot{.name = printable(path.native()),
                    .bytes = file->bytes(),
                    .owner = file,
                    .index = SafetensorsIndex::parse(file->bytes()),
                    .image = {},
                    .borrowed = {},
                    .slot = nullptr,
                    .path = path,
                    .files = {}};
  if (may_be_image && is_image(snapshot.index)) {
    snapshot.image = read_info(snapshot.bytes);
    snapshot.borrowed = borrowed_in(snapshot.bytes, *snapshot.image);
  }
  return snapshot;
}

}  // namespace

Snapshot open_file(const fs::path& path) {
  const auto parts = files_of_state(real_file_system(), path);
  if (parts == std::vector{path}) return open_one_file(path, true);
  Snapshot snapshot;
  snapshot.name = printable(path.native());
  snapshot.path = path;
  for (const auto& part : parts) snapshot.files.push_back(open_one_file(part, false));
  return snapshot;
}

Snapshot open_slot(const VaultListing& vault, SlotKey key, Content content) {
  const auto slot = find_slot(vault, key);
  if (content == Content::kAll && slot->left_out != 0) refuse_replica(vault, *slot);
  if (content == Content::kAll) {
    check_room({.what = "a copy of " + slot_text(vault, key),
                .bytes_per_rank = slot->info.image_bytes,
                .local_ranks = 1},
               read_room_limits(real_file_system(), {}));
  }
  SlotCopy copy(*slot, SlotCopy::Form::kImage);
  if (content == Content::kAll) {
    copy.read({0, slot->info.image_bytes});
  } else {
    read_structure(copy, slot->info);
  }
  slot->check_unchanged();
  const auto info = read_info(copy.bytes());
  return {.name = image_name(slot->info.identity, vault.rank),
          .bytes = copy.bytes(),
          .owner = copy.owner(),
          .index = SafetensorsIndex::parse(copy.bytes()),
          .image = info,
          .borrowed = borrowed_in(copy.bytes(), info),
          .slot = slot,
          .path = {},
          .files = {}};
}

Snapshot open_snapshot(const std::string& what, const Places& places, Content content) {
  std::error_code error;
  const auto status = fs::status(what, error);
  if (fs::is_directory(status)) {
    throw InvalidArgument(
        "\"" + printable(what) +
        "\" is a directory; give a file or an image, as meshstage ls prints them");
  }
  if (fs::is_regular_file(status)) {
    return naming(printable(what), [&] { return open_file(what); });
  }
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
  const auto chosen = choose(images, *name, content);
  if (!chosen) {
    throw make_error<NotFound>("there is no file \"" + printable(what) +
                                   "\", and no sealed or persisted image of that name in " +
                                   places_text(places) +
                                   "; --in DIR looks in another directory, meshstage ls lists "
                                   "what there is",
                               {}, {}, what);
  }
  return chosen->in_vault ? open_slot(*chosen->vault, chosen->key, content)
                          : open_file(chosen->file->path);
}

ImageInfo verify_slot(const VaultListing& vault, SlotKey key) {
  const auto slot = find_slot(vault, key);
  SlotCopy copy(*slot, SlotCopy::Form::kStored);
  const auto verify = [&] {
    const auto trailer_begin = read_structure(copy, slot->info);
    const auto data_begin = slot->info.manifest_bytes;
    if (trailer_begin < data_begin) throw CorruptData("the trailer begins before the data");
    const bool whole = slot->left_out == 0;
    const auto info = whole ? read_info(copy.bytes()) : read_replica_info(copy.bytes());
    if (!(info == slot->info)) {
      throw CorruptData(slot_text(vault, key) + ": its header says " +
                        to_string(slot->info.identity) + ", the image " + to_string(info.identity));
    }
    static_cast<void>(borrowed_in(copy.bytes(), info));  // what is not here can be found elsewhere
    BlockDigests digests(info.block_bytes, trailer_begin - data_begin,
                         slot->left_out / info.block_bytes);
    std::vector<std::byte> block(std::min(info.block_bytes, slot->info.image_bytes));
    for (auto i = digests.first_block(); i < digests.block_count(); ++i) {
      const auto bytes = std::span(block).first(digests.block_size(i));
      slot->file.read_image(bytes, data_begin + i * info.block_bytes - slot->left_out);
      digests.add(i, bytes);
    }
    return whole ? check_blocks(copy.bytes(), digests)
                 : check_replica_blocks(copy.bytes(), digests);
  };
  try {
    const auto info = verify();
    slot->check_unchanged();
    return info;
  } catch (const CorruptData&) {
    slot->check_unchanged();  // if it was overwritten, that is why
    throw;
  }
}

}  // namespace meshstage::tools
