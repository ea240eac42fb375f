#include <meshstage/core/replicate/old_images.hpp>

#include <new>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/replicate/completion.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage::replicate {
namespace {

/// The replica's image, whole: what it borrows comes from the lenders' files.
Storage completed(const ImageInfo& info, std::span<const std::byte> replica,
                  const Persistence& files) {
  const Storage whole = Storage::allocate(info.image_bytes);
  place_replica(replica, info, whole.bytes());
  const auto parts = borrowed_parts(replica, info);
  const ImageIdentity& who = info.identity;
  for (const auto& part : parts) {
    const auto lender = files.sound_file(who.id, part.rank, who.world_size);
    if (!lender) {
      throw NotFound("it borrows from rank " + std::to_string(part.rank) +
                     ", of which there is no sound file");
    }
    fill_part(part, lender->bytes(), info, whole.bytes());
  }
  clear_borrowed_padding(parts, info, whole.bytes());
  return whole;
}

/// Throws if there is no file of the image, and the disk has no room for one: a write that fails
/// half-way fills it for the trainer's next steps, too.
void require_room(const ImageInfo& info, const Persistence& files) {
  if (files.has_file(info.identity)) return;
  const std::uint64_t room = files.room();
  if (info.image_bytes > room) {
    throw OutOfMemory("there is room for " + std::to_string(room) + " bytes");
  }
}

/// Proves each byte that becomes part of a file, or of the file that is there already.
void write(const ImageInfo& info, std::span<const std::byte> image, int vault,
           const Persistence& files) {
  const ImageIdentity& who = info.identity;
  require_room(info, files);
  if (vault == who.rank) return files.publish_in_recovery(info, image, vault);
  if (files.sound_file(who.id, who.rank, who.world_size)) return;
  if (info.borrowed_bytes == 0) return files.publish_in_recovery(info, image, vault);
  files.publish_in_recovery(info, completed(info, image, files).bytes(), vault);
}

/// Adds the owner to `result`, or why that does not work. `vault`: the rank in whose vault the
/// image lies.
void publish(const ImageInfo& info, std::span<const std::byte> image, int vault,
             const Persistence& files, protocol::OldPublished& result) {
  const ImageIdentity& who = info.identity;
  std::string why;
  try {
    write(info, image, vault, files);
    result.written.push_back(who.rank);
    return;
  } catch (const Error& e) {
    why = e.what();
  } catch (const std::bad_alloc&) {
    why = "no memory to put it together";
  }
  result.failed += (result.failed.empty() ? "" : "; ") + std::string("the image of rank ") +
                   std::to_string(who.rank) + ", " + std::to_string(info.image_bytes) +
                   " bytes from the vault of rank " + std::to_string(vault) +
                   ", is not written to " + files.directory().string() + ": " + why;
}

}  // namespace

protocol::OldPublished publish_old_images(Vault& vault, std::span<const StraySlot> strays,
                                          const Persistence& files,
                                          const protocol::PublishOld& action) {
  protocol::OldPublished result;
  const auto wanted = [&](const ImageInfo& info, int in_vault_of) {
    const ImageIdentity& who = info.identity;
    return who.id == action.step.id && who.world_size == action.step.world_size &&
           (who.rank != in_vault_of) == action.replicas;
  };
  const int rank = vault.options().rank;
  for (const auto& [key, info] : vault.slots()) {
    if (info.state != SlotState::kSealed || !wanted(info.image, rank)) continue;
    const ReadLease lease = vault.read(key);
    publish(lease.info(), lease.image(), rank, files, result);
  }
  for (const StraySlot& slot : strays) {
    if (wanted(slot.image, slot.vault)) {
      publish(slot.image, slot.bytes, slot.vault, files, result);
    }
  }
  return result;
}

}  // namespace meshstage::replicate
