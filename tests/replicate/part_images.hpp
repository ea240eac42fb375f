// Images of a job in one process, as the tests of the engine's parts put them into slots and files.
#pragma once
#include <cstring>

#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/replicate/persistence.hpp>
#include <meshstage/core/vault/vault.hpp>

#include "tests/support/in_process_job.hpp"
#include "tests/support/job_steps.hpp"
#include "tests/support/states.hpp"

namespace meshstage::test {

/// The image of state_of(owner, id.step), about 40 KB in blocks of 4096 bytes.
inline TestImage image_of_step(int owner, int world_size, ImageId id, ImageId base = kNoImage) {
  return make_image(Value(state_of(owner, id.step)), {.block_bytes = 4096},
                    {InProcessJob::kName, owner, world_size, id, base});
}

inline protocol::ImageSizes sizes_of(const ImageInfo& info) {
  return {info.image_bytes, info.manifest_bytes, info.manifest_digest, info.borrowed_bytes,
          info.loans};
}

/// Leaves the file of that image in /disk, as rank `writer` of its job writes it.
inline void leave_file(FileSystem& disk, int writer, const TestImage& image) {
  const ImageIdentity& of = image.info.identity;
  Persistence(disk, "/disk", of.job, writer, of.world_size).publish(image.info, image.bytes());
}

/// Seals `bytes`, an image or its replica, in a slot.
inline void seal_in(Vault& vault, SlotKey key, const ImageInfo& info,
                    std::span<const std::byte> bytes) {
  WriteLease lease = vault.begin_write(key, info.identity, bytes.size());
  std::memcpy(lease.image().data(), bytes.data(), bytes.size());
  lease.seal(info);
}
inline void seal_in(Vault& vault, SlotKey key, const TestImage& image) {
  seal_in(vault, key, image.info, image.bytes());
}

inline bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}
/// Whether the slot has that image sealed, each byte of it.
inline bool has_sealed(Vault& vault, SlotKey key, const ImageInfo& info,
                       std::span<const std::byte> bytes) {
  if (vault.slot(key).state != SlotState::kSealed) return false;
  const ReadLease lease = vault.read(key);
  return lease.info() == info && same_bytes(lease.image(), bytes);
}
inline bool has_sealed(Vault& vault, SlotKey key, const TestImage& image) {
  return has_sealed(vault, key, image.info, image.bytes());
}

}  // namespace meshstage::test
