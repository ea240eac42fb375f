#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/mesh/layout.hpp>

/// Blocks of tensors that travel between the ranks of a group: what redistribute, gather and
/// reshard are made of. Private to mesh, dtensor and sharded.
namespace meshstage::blocks {

/// A block within a tensor, in the coordinates of the whole.
using Block = LocalShard;

/// What both have. Empty (some size 0) if nothing.
[[nodiscard]] Block intersection(const Block& a, const Block& b);
/// True if view_of() can give `inner` in a tensor that holds `outer`.
[[nodiscard]] bool contains(const Block& outer, const Block& inner);
/// The elements of `wanted` in a tensor that holds `held`. `wanted` lies within it.
[[nodiscard]] Tensor view_of(const Tensor& tensor, const Block& held, const Block& wanted);

/// One block that goes to `peer` or comes from it: a view, of any strides, on the CPU.
struct Piece {
  int peer = 0;
  Tensor view;
  /// Incoming only. Called for each part of the block, as it arrives, with the part's place in
  /// `view` and its elements (row-major, except from the own rank). Empty: they are copied.
  std::function<void(const Tensor& place, const Tensor& elements)> arrive;
};

/// Sends and receives pieces until `deadline`. Collective over the ranks that have pieces for each
/// other: where r has pieces for s, s expects as many from r, of the same shapes and dtype, in the
/// same order. Pieces without elements are left out on both sides. Pieces for the own rank are
/// copied; there must be as many outgoing as incoming ones.
///
/// A rank serves its peers in the order of their distance, each in parts of a few MiB, of which two
/// are under way; so what is not row-major needs scratch memory of two parts each way, at most half
/// of the block. `arrive` is called in the order of the distances: first the own rank, then the one
/// before, and so on around; nothing depends on time.
void exchange(ProcessGroup& group, std::span<const Piece> outgoing, std::span<const Piece> incoming,
              Deadline deadline);

}  // namespace meshstage::blocks
