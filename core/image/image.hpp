#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

// An image is one rank's state dict as bytes, and byte for byte a safetensors file: FORMAT.md
// beside this file. All of these treat the bytes as hostile: what is not a sound image throws
// CorruptData with what is wrong, and rank(), step() and path() where they are known; memory stays
// within a small multiple of the manifest. `image` is exactly the image (its length says where it
// ends), aligned to 16 bytes. They only read it; any thread, nobody may write it meanwhile.

/// What the trailer says. Checks the trailer's digest and every size, but reads no other byte than
/// the trailer's and the first eight: a flipped byte elsewhere is verify_image()'s to find.
MESHSTAGE_API ImageInfo read_info(std::span<const std::byte> image);

/// Checks every digest. A wrong block is named by rank, step and the paths of the tensors in it.
MESHSTAGE_API ImageInfo verify_image(std::span<const std::byte> image);

/// The state dict. Its tensors are views of `image`, which `owner` keeps alive; sharing between
/// them is as it was. `traits` says what their storages are (read-only unless you say otherwise:
/// only then may `image` be constant memory). Node types not in `registry` become OpaqueNodes.
MESHSTAGE_API Value decode_image(std::span<const std::byte> image,
                                 std::shared_ptr<const void> owner,
                                 const NodeRegistry& registry = {},
                                 StorageTraits traits = {.read_only = true});

/// The first difference in structure between an image (left) and a state (right), nothing if the
/// image can be restored into it: kinds, keys, lengths, dtypes, shapes, strides, offsets, storage
/// sizes, attributes, sharing. Values, kinds of scalars, devices and the order of keys may differ.
MESHSTAGE_API std::optional<Difference> compare_structure(std::span<const std::byte> image,
                                                          const Value& state);

/// What compare_structure() found, in words: "model.w: shape: F32[2, 3] in the image, F32[3, 2] in
/// the program's state dict".
MESHSTAGE_API std::string describe_mismatch(const Difference& difference);

/// Throws InvalidState naming the first tensor of `state` into which nothing can be restored: in
/// read-only memory, or said to be on a device whose driver does not know it.
MESHSTAGE_API void require_writable(const Value& state);

/// How restore_into() reaches tensors on devices.
struct RestoreOptions {
  /// The streams on which the trainer uses them; the legacy default stream of a device that is not
  /// named. They are written behind what was issued there before the call.
  std::vector<TrainerStream> streams = {};
  /// Keeps `image` alive for as long as a device reads it, also where the call throws. Without it
  /// the call waits for the devices then, beyond the deadline if need be.
  std::shared_ptr<const void> keep = {};
  /// Devices that are not done by then: Timeout.
  Deadline deadline = Deadline::never();
};

/// Brings the image into `state`, in place: bytes into the storages its tensors have, scalars into
/// its containers; Nodes that cannot take them are replaced. Tensors on devices are written by
/// their devices, at the full rate where `image` is page-locked, all at the same time, and are
/// there when the call returns. Structure is compared first: throws StructureMismatch with the
/// first differing path (InvalidState for read-only memory, memory that a driver does not know, or
/// a trainer's stream that is being captured) and has then touched nothing. What devices report
/// later is InvalidState or Timeout and says that the tensors are unusable: some are written, some
/// are not. Does not verify digests.
MESHSTAGE_API void restore_into(std::span<const std::byte> image, Value& state,
                                const RestoreOptions& options = {});
/// The same for a dict, which stays the same object.
MESHSTAGE_API void restore_into(std::span<const std::byte> image, Dict& state,
                                const RestoreOptions& options = {});

}  // namespace meshstage
