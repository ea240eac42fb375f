#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/error/export.hpp>

/// Operations that all ranks of a group call together: in the same order, with the same sizes, one
/// at a time. They use only ProcessGroup::send and receive, and throw what Transfer::wait throws.
/// After an error the group cannot be used any more, and buffers hold anything. Without a deadline
/// an operation waits as long as the group lets it: Checkpointer::group() has a limit of its own.
///
/// *Tree* collectives need only the links of the control tree (core/error/rank_tree.hpp); *full*
/// ones need a link to every rank, else they throw InvalidArgument.
namespace meshstage::collectives {

enum class ReduceOp : std::uint8_t { kSum, kAvg, kProduct, kMin, kMax };

/// Element types that can be reduced. f16 and bf16 are added in f32 and rounded to nearest even
/// after each addition; an average of f16 is rounded once, at its end, so that it does not overflow
/// where the mean fits.
enum class Element : std::uint8_t { kU8, kI8, kI16, kI32, kI64, kF16, kBF16, kF32, kF64 };
[[nodiscard]] MESHSTAGE_API std::size_t bytes_of(Element element) noexcept;

/// A backend's own collectives. They do what the functions below do, which check sizes, types and
/// roots first; the backend chooses the order of additions. Such a group may be over a device's
/// memory, so collectives that this class lacks refuse it with InvalidArgument.
class MESHSTAGE_API Own {
 public:
  Own() = default;
  Own(const Own&) = delete;
  Own& operator=(const Own&) = delete;
  virtual ~Own() = default;
  virtual void barrier(Deadline deadline) = 0;
  virtual void broadcast(std::span<std::byte> data, int root, Deadline deadline) = 0;
  virtual void all_gather(std::span<const std::byte> mine, std::span<std::byte> all,
                          Deadline deadline) = 0;
  virtual void all_reduce(std::span<std::byte> data, Element element, ReduceOp op,
                          Deadline deadline) = 0;
  virtual void reduce_scatter(std::span<const std::byte> data, std::span<std::byte> mine,
                              Element element, ReduceOp op, Deadline deadline) = 0;
};

/// No rank returns before every rank has called it. Tree.
MESHSTAGE_API void barrier(ProcessGroup& group, Deadline deadline = Deadline::never());
/// A barrier before ranks that have agreed on an error leave the group by it. The first rank that
/// leaves ends what is on its way to the others, and they would see a lost rank instead of the
/// error. Returns also when a rank is lost, or at `deadline`: this rank has heard the error.
MESHSTAGE_API void leave_together(ProcessGroup& group, Deadline deadline);
/// Copies `data` of `root` into `data` of every rank. Tree, from any root.
MESHSTAGE_API void broadcast(ProcessGroup& group, std::span<std::byte> data, int root,
                             Deadline deadline = Deadline::never());
/// Puts each rank's `mine`, one behind the other in rank order, into `all` of `root` (at the other
/// ranks `all` may be empty). all.size() == size * mine.size(). Tree.
MESHSTAGE_API void gather(ProcessGroup& group, std::span<const std::byte> mine,
                          std::span<std::byte> all, int root,
                          Deadline deadline = Deadline::never());
/// Like gather, but every rank gets `all`. Tree.
MESHSTAGE_API void all_gather(ProcessGroup& group, std::span<const std::byte> mine,
                              std::span<std::byte> all, Deadline deadline = Deadline::never());
/// Gathers byte strings at every rank; element i is rank i's `mine`. The lengths may differ. Tree.
[[nodiscard]] MESHSTAGE_API std::vector<std::vector<std::byte>> all_gather_bytes(
    ProcessGroup& group, std::span<const std::byte> mine, Deadline deadline = Deadline::never());

/// Reduces `data` element-wise over all ranks, in place. The result has the same bits on every rank
/// and in every run: only the control tree decides the order of additions (own + left subtree +
/// right subtree). kMin and kMax give NaN if an element is NaN. kAvg is the sum divided once by the
/// number of ranks; it takes floating types only. Tree.
MESHSTAGE_API void all_reduce(ProcessGroup& group, std::span<std::byte> data, Element element,
                              ReduceOp op, Deadline deadline = Deadline::never());
/// Like all_reduce, but rank r gets only the r-th of `size` equal parts of `data`. Additions are
/// done in rank order, so the last bits may differ from all_reduce's. data.size() == size *
/// mine.size(). Full.
MESHSTAGE_API void reduce_scatter(ProcessGroup& group, std::span<const std::byte> data,
                                  std::span<std::byte> mine, Element element, ReduceOp op,
                                  Deadline deadline = Deadline::never());
/// Sends parts[r] to rank r and receives incoming[r] from rank r, which must have the length that
/// rank r sends. Both have one entry for each rank; the calling rank's own entry is copied. Full.
MESHSTAGE_API void all_to_all(ProcessGroup& group,
                              std::span<const std::span<const std::byte>> parts,
                              std::span<const std::span<std::byte>> incoming,
                              Deadline deadline = Deadline::never());

template <class T>
struct ElementOf;
template <>
struct ElementOf<std::uint8_t> {
  static constexpr Element value = Element::kU8;
};
template <>
struct ElementOf<std::int8_t> {
  static constexpr Element value = Element::kI8;
};
template <>
struct ElementOf<std::int16_t> {
  static constexpr Element value = Element::kI16;
};
template <>
struct ElementOf<std::int32_t> {
  static constexpr Element value = Element::kI32;
};
template <>
struct ElementOf<std::int64_t> {
  static constexpr Element value = Element::kI64;
};
template <>
struct ElementOf<float> {
  static constexpr Element value = Element::kF32;
};
template <>
struct ElementOf<double> {
  static constexpr Element value = Element::kF64;
};

/// all_reduce of a typed span.
template <class T>
void all_reduce(ProcessGroup& group, std::span<T> data, ReduceOp op,
                Deadline deadline = Deadline::never()) {
  all_reduce(group, std::as_writable_bytes(data), ElementOf<T>::value, op, deadline);
}

}  // namespace meshstage::collectives
