#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/tensor/box.hpp>

/// Moves blocks of tensors between the ranks of a group; redistribute, gather and reshard use it.
/// Private to mesh, dtensor and sharded.
namespace meshstage::blocks {

/// A block within a tensor, in the coordinates of the whole tensor.
using Block = Box;
using meshstage::contains;
using meshstage::intersection;
using meshstage::view_of;

/// One block that goes to `peer` or comes from it: a view, of any strides, on the CPU.
struct Piece {
  int peer = 0;
  Tensor view;
  /// Only for incoming pieces: called for each part of the block when it arrives, with the part's
  /// place in `view` and its elements (row-major, except from the rank itself). Empty: the elements
  /// are copied.
  std::function<void(const Tensor& place, const Tensor& elements)> arrive;
};

/// Sends and receives pieces until `deadline`. Collective over the ranks that have pieces for each
/// other: if rank r has pieces for rank s, s expects as many from r, of the same shapes and dtype,
/// in the same order. Both sides leave out pieces without elements. Pieces for the calling rank
/// itself are copied; of these there must be as many outgoing as incoming ones.
///
/// A rank serves its peers in the order of their distance, each in parts of a few MiB, of which two
/// are under way. So a view that is not row-major needs scratch memory of two parts each way, at
/// most half of the block. `arrive` is called in the order of the distances: first for the rank
/// itself, then for the rank before it, and so on around; nothing depends on time.
void exchange(ProcessGroup& group, std::span<const Piece> outgoing, std::span<const Piece> incoming,
              Deadline deadline);

}  // namespace meshstage::blocks
