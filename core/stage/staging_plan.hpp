#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/image/blocks.hpp>
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
  /// Storages of at least so many bytes share no page of 4096 bytes with others, so that each can
  /// be page-locked alone. 0: no storage.
  std::uint64_t own_pages_from = 0;
  /// Storages that the image's replicas borrow, by lender: they come first in the image, and its
  /// replicas leave them out. Unknown names and storages below kLeastBorrowedBytes are ignored. If
  /// two ranks have a name, the lower rank counts. If all of them together fill no block, nothing
  /// is borrowed.
  std::vector<LoanNames> borrowed = {};
  /// Storages that the image lends to replicas of other ranks, by borrower: the trailer lists them
  /// (Loans). Unknown names and small storages are ignored, as above; a storage may be named
  /// several times.
  std::vector<LoanNames> lent = {};
  /// The longest header that the image may have, in bytes: at most kMaxHeaderBytes, the default;
  /// kMaxPythonHeaderBytes if Python's safetensors must be able to read the image as a file.
  std::uint64_t max_header_bytes = kMaxHeaderBytes;
};

/// The parts of a state dict that one staging takes at the moment of the call: strong references to
/// its storages, and its scalars as they are then. The tree may change afterwards; the tensors'
/// bytes must not change until they are copied. Drop the source then, because it keeps the storages
/// alive.
struct StagingSource {
  std::vector<Storage> storages;   ///< In the plan's order.
  std::vector<std::byte> values;   ///< The values entry.
  std::vector<Tensor> tensors;     ///< Distinct tensor objects in the plan's order.
  std::vector<DeviceReady> ready;  ///< Events; copies from devices come behind them.
};

/// How StagingPlan::copy() does its work. The objects pointed to must outlive the call.
struct CopyOptions {
  /// Each copying thread asks it before each piece. Null: as fast as the memory allows.
  Pace* pace = nullptr;
  /// Threads that help; an image that fits a cache is copied by the caller alone. Null: none.
  Crew* crew = nullptr;
  unsigned hands = 0;  ///< The most threads, the caller included. 0: as many as the crew has.
  /// An object of StagingPlan::block_digests(), which gets the digest of each block. The pass that
  /// copies a block digests it, or else the device that it is copied from. A device digests its own
  /// memory, so an image that was not copied faithfully does not match.
  BlockDigests* digests = nullptr;
  /// The result of StagingPlan::issue(). Null: copy() issues the devices' copies itself, and
  /// returns or throws only when no device uses the image any more. A pace does not slow devices
  /// down.
  const detail::DeviceCopies* devices = nullptr;
  /// Called once, on a copying thread, as soon as no tensor of the CPU is read any more; not called
  /// if copy() throws before that. Empty: nothing.
  std::function<void()> cpu_read = {};
};

/// A state dict compiled into a flat list of copies, replayed while the structure stays.
/// Every distinct storage is copied whole, once, however many views of it there are. Tensors may be
/// on devices: the CPU's come first in the image, then each device's. The tensors of a device begin
/// and end at a digest block's edge if they fill one.
/// A handle to something immutable: copies are cheap. Threads: any.
class MESHSTAGE_API StagingPlan {
 public:
  /// Lays out `state`. With `previous`, storages that are still there keep their offsets, freed
  /// ranges are filled, and the rest is appended. Everything is laid out anew above 10 % of waste,
  /// where storages are borrowed or were in `previous`, and where a storage is on a device.
  /// Throws InvalidArgument:
  /// - naming the path, for a cycle, a tree too deep, or a tensor whose memory the driver does not
  /// know as its device's;
  /// - naming path and limit, for an image that a reader would refuse (more than kMaxDims dims, a
  /// longer header, auxiliary data nested too deeply);
  /// - for options out of range.
  static StagingPlan compile(const Value& state, const StagingPlan* previous = nullptr,
                             PlanOptions options = {});

  /// True if the plan fits `state`: same structure, sharing and storage sizes, and room for its
  /// scalars. The tensors need not be the objects of compile(), but with these the call is fastest.
  [[nodiscard]] bool matches(const Value& state) const;
  /// Checks matches() and takes the source of a copy, in one walk; nothing if the plan does not
  /// fit. `streams` are the trainer's streams for its tensors on devices; a device that is not
  /// named has its legacy default stream. Copies come behind the work issued on these streams
  /// before this call. Throws InvalidState, before anything is issued, if one of them is being
  /// captured into a graph.
  [[nodiscard]] std::optional<StagingSource> capture(
      const Value& state, std::span<const TrainerStream> streams = {}) const;
  /// Issues the devices' copies of `source` on `streams`, behind source.ready; null if no tensor is
  /// on a device. `keep` keeps the source's storages and the image alive as long as devices use
  /// them, also beyond the result's life. If `image` is not page-locked, the call returns only when
  /// the copies are done. `digest`: beside the copies each device digests the blocks whose bytes
  /// are all its own, from its memory, for CopyOptions::digests. Throws the error that the driver
  /// reports.
  [[nodiscard]] std::unique_ptr<const detail::DeviceCopies> issue(const StagingSource& source,
                                                                  std::span<std::byte> image,
                                                                  detail::DeviceStreams& streams,
                                                                  std::shared_ptr<const void> keep,
                                                                  bool digest = true) const;

  [[nodiscard]] const ImageLayout& layout() const noexcept;
  /// Writes the bytes [0, data_begin). Here and in all calls below `image` must have at least
  /// image_bytes bytes.
  void write_manifest(std::span<std::byte> image) const;
  /// An object for CopyOptions::digests, to which no digest was added yet.
  [[nodiscard]] BlockDigests block_digests() const;
  /// Copies everything between manifest and trailer, in parts that begin in ascending order, and
  /// advances `progress` up to trailer_begin over the parts that are done. Padding becomes zero.
  /// Write the manifest first, because `progress` counts it. Throws the cause of `progress` soon
  /// after `progress` was failed, what a pace throws, and InvalidState if a device failed. Then the
  /// image is torn, and no thread writes it any more (a device may: see CopyOptions::devices).
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
  /// image_bytes. May run on another thread at the same time as copy(), and waits for copy() until
  /// `deadline`. Throws InvalidArgument for an identity that no image can have: for example a rank
  /// that borrows from or lends to itself, or a rank beyond the world size.
  ImageInfo seal(const ImageIdentity& identity, std::span<std::byte> image, Watermark& progress,
                 Deadline deadline = Deadline::never()) const;
  /// seal() with the digests that copy() made: only the trailer is left to write. Also throws
  /// InvalidArgument if `digests` are not complete or not of this plan.
  ImageInfo seal(const ImageIdentity& identity, std::span<std::byte> image, Watermark& progress,
                 const BlockDigests& digests) const;
  /// A new `state` whose tensors are on `image`, with the original's views and sharing. `owner`
  /// keeps the bytes alive, `traits` describes them. Containers and Nodes are new; scalars are
  /// those of `state`. Throws StructureMismatch if the plan does not fit.
  [[nodiscard]] Value rebuild(const Value& state, std::span<std::byte> image,
                              std::shared_ptr<const void> owner, StorageTraits traits = {}) const;
  /// The distinct tensors, in the order of StagingSource::tensors, but on `storages`. These must
  /// have one storage for each of the layout's segments, of its size, in the order of
  /// ImageSegment::storage.
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
