#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/image/layout.hpp>
#include <meshstage/core/image/safetensors.hpp>
#include <meshstage/core/stage/pace.hpp>
#include <meshstage/core/stage/watermark.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

namespace detail {
class DeviceCopies;
class DeviceStreams;
}  // namespace detail

struct PlanOptions {
  /// Unit of the block digests, bytes; a power of two from 4096. Kept in the manifest.
  std::uint64_t block_bytes = std::uint64_t{4} << 20U;
  /// Storages of at least so many bytes share no page of 4096 bytes with others, so that they can
  /// be page-locked by themselves. 0: none of them.
  std::uint64_t own_pages_from = 0;
  /// Storages that the image's replicas borrow, by lender: they come first in the image, and its
  /// replicas leave them out. Ignored are names that are no storage's, storages below
  /// kLeastBorrowedBytes, a name under a second rank (the lowest counts), and all of them if they
  /// fill no block.
  std::vector<LoanNames> borrowed = {};
  /// Storages that the image lends to replicas of other ranks, by borrower: its trailer says what
  /// they were (Loans). Ignored are names as above; a storage may be named several times.
  std::vector<LoanNames> lent = {};
  /// The longest header that the image may have, bytes: at most kMaxHeaderBytes, the default;
  /// kMaxPythonHeaderBytes if Python's safetensors must be able to read the image as a file.
  std::uint64_t max_header_bytes = kMaxHeaderBytes;
};

/// What one staging takes from a state dict at the moment of the call: strong references to its
/// storages, and its scalars as they are then. The tree may change afterwards; the tensors' bytes
/// must not until they are copied. Hold no longer than that: it keeps the storages alive.
struct StagingSource {
  std::vector<Storage> storages;   ///< In the plan's order.
  std::vector<std::byte> values;   ///< The values entry.
  std::vector<Tensor> tensors;     ///< Distinct tensor objects in the plan's order.
  std::vector<DeviceReady> ready;  ///< What copies from devices come behind.
};

/// How StagingPlan::copy() does its work. What is pointed to must outlive the call.
struct CopyOptions {
  /// Asked before each piece, by each thread that copies. Null: as fast as the memory is.
  Pace* pace = nullptr;
  /// Threads that help; an image that fits a cache is copied by the caller alone. Null: none.
  Crew* crew = nullptr;
  unsigned hands = 0;  ///< At most so many threads, the caller included. 0: as the crew has.
  /// Gets the digest of each block, made in the pass that copies it. As
  /// StagingPlan::block_digests() made it.
  BlockDigests* digests = nullptr;
  /// What StagingPlan::issue() returned. Null: copy() issues it itself, and returns or throws only
  /// when no device uses the image any more. No pace holds devices back.
  const detail::DeviceCopies* devices = nullptr;
};

/// A state dict compiled into a flat list of copies, replayed while the structure stays.
/// Every distinct storage is copied whole, once, however many views of it there are. Tensors may be
/// on devices: those of the CPU come first in the image, then those of each device, which begin
/// and end with a digest block where they fill one.
/// A handle to something immutable: copies are cheap, all calls may come from any thread.
class MESHSTAGE_API StagingPlan {
 public:
  /// Lays `state` out. With `previous`, what stayed keeps its offset, freed ranges are filled, the
  /// rest is appended; above 10 % of waste everything is laid out anew. So it is always where
  /// storages are borrowed, or were in `previous`, and where any is on a device.
  /// Throws InvalidArgument, naming the path, on a cycle, a tree too deep or a tensor whose memory
  /// the driver does not know as its device's; for whatever a reader of the image would refuse
  /// (more than kMaxDims dims, a longer header, auxiliary data nested too deeply), naming path and
  /// limit; and for options out of range.
  static StagingPlan compile(const Value& state, const StagingPlan* previous = nullptr,
                             PlanOptions options = {});

  /// The plan fits `state`: same structure, sharing and storage sizes, and its scalars have room.
  /// Whether tensors are the same objects as at compile() does not matter, but is what is fast.
  [[nodiscard]] bool matches(const Value& state) const;
  /// matches(), and what a copy needs, in one walk; nothing if the plan does not fit. `streams` are
  /// those on which the trainer uses its tensors of devices (the legacy default stream of a device
  /// that is not named): copies come behind what was issued there before this call. Throws
  /// InvalidState before anything is issued if one of them is being captured into a graph.
  [[nodiscard]] std::optional<StagingSource> capture(
      const Value& state, std::span<const TrainerStream> streams = {}) const;
  /// Issues what devices copy of `source`, on `streams`, behind source.ready; null if it has no
  /// tensor on a device. `keep` keeps the source's storages and the image alive for as long as
  /// devices use them, also beyond the result's life. Throws what the driver reports. Where `image`
  /// is not page-locked it returns only when those copies are done.
  [[nodiscard]] std::unique_ptr<const detail::DeviceCopies> issue(
      const StagingSource& source, std::span<std::byte> image, detail::DeviceStreams& streams,
      std::shared_ptr<const void> keep) const;

  [[nodiscard]] const ImageLayout& layout() const noexcept;
  /// Writes the bytes [0, data_begin). `image` has at least image_bytes bytes (in all of these).
  void write_manifest(std::span<std::byte> image) const;
  /// For CopyOptions::digests: none added yet.
  [[nodiscard]] BlockDigests block_digests() const;
  /// Copies everything between manifest and trailer, in parts that begin in ascending order, and
  /// advances `progress` to trailer_begin as the parts before are done. Padding becomes zero. Write
  /// the manifest first: progress counts it. Throws `progress`' cause soon after somebody failed
  /// it, what a pace throws, and InvalidState if a device failed; then the image is torn, and no
  /// thread writes it any more (a device may: CopyOptions::devices).
  void copy(const StagingSource& source, std::span<std::byte> image, Watermark& progress,
            const CopyOptions& options) const;
  void copy(const StagingSource& source, std::span<std::byte> image, Watermark& progress,
            Pace* pace = nullptr) const {
    copy(source, image, progress, CopyOptions{.pace = pace});
  }
  /// capture() and copy(), behind the legacy default streams. Throws StructureMismatch if the plan
  /// does not fit.
  void copy(const Value& state, std::span<std::byte> image, Watermark& progress) const;
  /// Digests each block as soon as it is final, writes the trailer, and advances `progress` to
  /// image_bytes. May run on another thread at the same time as copy(); waits for it until
  /// `deadline`. Throws InvalidArgument for an identity that no image has, one that borrows from or
  /// lends to itself or with a rank beyond its world included.
  ImageInfo seal(const ImageIdentity& identity, std::span<std::byte> image, Watermark& progress,
                 Deadline deadline = Deadline::never()) const;
  /// The same, with the digests that copy() made: what is left is the trailer. Throws
  /// InvalidArgument too where `digests` are not complete or not of this plan.
  ImageInfo seal(const ImageIdentity& identity, std::span<std::byte> image, Watermark& progress,
                 const BlockDigests& digests) const;
  /// `state` again, with tensors on `image` instead (views and sharing as in the original); `owner`
  /// keeps the bytes alive, `traits` describes them. Containers and Nodes are new, scalars as in
  /// `state`. Throws StructureMismatch if the plan does not fit.
  [[nodiscard]] Value rebuild(const Value& state, std::span<std::byte> image,
                              std::shared_ptr<const void> owner, StorageTraits traits = {}) const;
  /// The distinct tensors in the order of StagingSource::tensors, on `storages` instead: one for
  /// each of the layout's segments, of its size, in the order of ImageSegment::storage.
  [[nodiscard]] std::vector<Tensor> place_tensors(std::span<const Storage> storages) const;

 private:
  struct Impl;
  [[nodiscard]] std::optional<StagingSource> take(const Value& state) const;
  void check_identity(const ImageIdentity& identity) const;
  ImageInfo write_trailer(const ImageIdentity& identity, std::span<std::byte> image,
                          Watermark& progress, const BlockDigests& digests) const;
  explicit StagingPlan(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace meshstage
