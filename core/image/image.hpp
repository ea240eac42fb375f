#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

// An image is one rank's state dict as bytes, and byte for byte a safetensors file: FORMAT.md
// beside this file. All functions here treat the bytes as hostile. For bytes that are no sound
// image they throw CorruptData, which says what is wrong and has rank(), step() and path() where
// these are known. They take no more memory than a small multiple of the manifest.
// `image` has exactly the image's bytes, aligned to 16. The functions only read it; any thread may
// call them, and no thread may write the image meanwhile.

/// Reads the trailer. Checks the trailer's digest and every size, but reads only the trailer and
/// the first eight bytes: verify_image() finds a flipped byte elsewhere.
MESHSTAGE_API ImageInfo read_info(std::span<const std::byte> image);

/// Checks every digest. The error for a wrong block names rank, step and the paths of the block's
/// tensors.
MESHSTAGE_API ImageInfo verify_image(std::span<const std::byte> image);

/// Decodes the state dict. Its tensors are views of `image`, which `owner` keeps alive; tensors
/// that shared a storage share it again. `traits` describes their storages: read-only by default,
/// and only then may `image` be constant memory. Node types that are not in `registry` become
/// OpaqueNodes.
MESHSTAGE_API Value decode_image(std::span<const std::byte> image,
                                 std::shared_ptr<const void> owner,
                                 const NodeRegistry& registry = {},
                                 StorageTraits traits = {.read_only = true});

/// The first difference in structure between an image (left) and a state (right); nothing if the
/// image can be restored into the state. Compares kinds, keys, lengths, dtypes, shapes, strides,
/// offsets, storage sizes, attributes, sharing. Values, kinds of scalars, devices and the order of
/// keys may differ.
MESHSTAGE_API std::optional<Difference> compare_structure(std::span<const std::byte> image,
                                                          const Value& state);

/// A difference of compare_structure() in words: "model.w: shape: F32[2, 3] in the image, F32[3, 2]
/// in the program's state dict".
MESHSTAGE_API std::string describe_mismatch(const Difference& difference);

/// Throws InvalidState naming the first tensor of `state` that cannot be restored: one in read-only
/// memory, or one that claims to be on a device whose driver does not know the memory.
MESHSTAGE_API void require_writable(const Value& state);

/// How restore_into() reaches tensors on devices.
struct RestoreOptions {
  /// The streams on which the trainer uses the tensors; a device that is not named here has its
  /// legacy default stream. The tensors are written behind the work issued there before the call.
  std::vector<TrainerStream> streams = {};
  /// Keeps `image` alive as long as a device reads it, also if the call throws. Without it a call
  /// that throws waits for the devices first, beyond the deadline if need be.
  std::shared_ptr<const void> keep = {};
  /// Throws Timeout if devices are not done by then.
  Deadline deadline = Deadline::never();
  /// How many threads copy into tensors on the CPU, the caller included, if there are so many bytes
  /// that it pays. 0: as many as the processors allow while the caller waits
  /// (default_copy_threads(), Beside::kNothing).
  unsigned copy_threads = 0;
};

/// Restores the image into `state`, in place: bytes into the storages of its tensors, scalars into
/// its containers. A Node that cannot be changed in place is replaced. Devices write their tensors,
/// all at the same time, at the full rate if `image` is page-locked; all tensors are written when
/// the call returns. Does not verify digests.
/// Compares the structure before it touches anything, and throws StructureMismatch with the first
/// differing path. Throws InvalidState, also before it touches anything, for read-only memory, for
/// memory that a driver does not know, and for a trainer's stream that is being captured. A later
/// error of a device is InvalidState or Timeout and says that the tensors are unusable: some are
/// written, some are not.
MESHSTAGE_API void restore_into(std::span<const std::byte> image, Value& state,
                                const RestoreOptions& options = {});
/// restore_into() for a dict, which stays the same object.
MESHSTAGE_API void restore_into(std::span<const std::byte> image, Dict& state,
                                const RestoreOptions& options = {});

}  // namespace meshstage
