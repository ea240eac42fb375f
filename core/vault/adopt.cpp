// What older incarnations hold, brought into this one. Their slots' words were taken when this
// process took the vault, so what is sealed there stays as it is, whatever its owner does.
#include <meshstage/core/vault/adopt_impl.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/names_impl.hpp>

#include <algorithm>
#include <utility>

namespace meshstage::detail {

namespace {

/// The lock of a dead owner, held; nothing if the owner lives. Call with lock_files_mutex() held.
std::unique_ptr<File> lock_of_dead(const VaultState& state, std::uint64_t incarnation) {
  try {
    auto file = open_private(state.fs, state.lock_path(incarnation));
    if (file->try_lock()) return file;
  } catch (const SystemError& e) {
    if (!is_missing(e)) throw;  // removed while a listing was made; its slots go, too
  }
  return nullptr;
}

std::optional<OlderSlot> look_at(const VaultState& state, const VaultFileName& name,
                                 const std::filesystem::path& path) {
  try {
    const auto file = open_private(state.fs, path);
    if (file->stat().size < kHeaderBytes) return std::nullopt;
    const Mapping page(*file, kHeaderBytes, MapAccess::kReadWrite);
    state.take_word(page.bytes());
    SlotInfo info = decode_header(page.bytes().first<kHeaderBytes>());
    info.capacity = file->stat().size - kHeaderBytes;
    const ImageInfo& image = info.image;
    if (info.state != SlotState::kSealed || image.identity.job != state.options.job ||
        image.identity.rank != name.slot.owner_rank || !has_sound_sizes(image) ||
        stored_bytes(name.slot, state.options.rank, image) > info.capacity) {
      return std::nullopt;
    }
    return OlderSlot{name.incarnation, name.slot, image, path};
  } catch (const SystemError& e) {
    if (!is_missing(e)) throw;
  }
  return std::nullopt;
}

}  // namespace

std::vector<OlderSlot> older_slots(const VaultState& state) {
  std::vector<OlderSlot> found;
  for (const auto& [name, path] : state.files()) {
    if (name.kind != VaultFileKind::kSlot || name.incarnation >= state.incarnation) continue;
    if (auto slot = look_at(state, name, path)) found.push_back(std::move(*slot));
  }
  std::sort(found.begin(), found.end(), [](const OlderSlot& a, const OlderSlot& b) {
    if (a.image.identity.id != b.image.identity.id)
      return a.image.identity.id > b.image.identity.id;
    return a.incarnation > b.incarnation;
  });
  return found;
}

std::optional<SlotKey> place_for(const VaultState& state, const OlderSlot& from) {
  std::optional<SlotKey> place;
  for (const int index : {1, 0}) {
    const SlotKey key{from.key.owner_rank, index};
    const auto at = state.slots.find(key);
    if (at == state.slots.end()) {
      place = key;
      continue;
    }
    const SlotInfo info = state.info(key, *at->second);
    if (info.state == SlotState::kSealed) {
      if (info.image.identity.id == from.image.identity.id) return std::nullopt;  // it is here
    } else if (!at->second->writing && at->second->readers == 0) {
      place = key;
    }
  }
  return place;
}

bool move_in(VaultState& state, const OlderSlot& from, SlotKey to) {
  // Held while the file moves, so that nobody else adopts it meanwhile.
  const auto dead = lock_of_dead(state, from.incarnation);
  if (!dead) return false;
  try {
    state.fs.rename(from.path, state.slot_path(to));
  } catch (const SystemError& e) {
    if (!is_missing(e)) throw;
    return false;
  }
  state.forget_slot(to);
  (void)state.ensure_slot(to);
  return true;
}

}  // namespace meshstage::detail
