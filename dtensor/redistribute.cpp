#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include <meshstage/core/comm/reduce.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/elements_impl.hpp>
#include <meshstage/dtensor/redistribute_impl.hpp>
#include <meshstage/mesh/block_exchange.hpp>

namespace meshstage::dtensor {
namespace {

/// Reductions of one family can be done in any order: the mean is a sum, divided at the end.
ReduceOp family(ReduceOp op) { return op == ReduceOp::kAvg ? ReduceOp::kSum : op; }

/// Which partial dimensions of the source are reduced, for these placements. A partial that stays
/// is reduced all the same (and made anew) if a later dimension of another family is.
std::vector<bool> reduced_dims(const Side& from, const Placements& to) {
  std::vector<bool> reduced(to.size());
  for (std::size_t d = to.size(); d-- > 0;) {
    const Placement& p = from.placement(d);
    if (!p.is_partial()) continue;
    reduced[d] = to[d] != p;
    for (std::size_t later = d + 1; later < to.size(); ++later) {
      if (reduced[later] && family(from.placement(later).op()) != family(p.op())) {
        reduced[d] = true;
      }
    }
  }
  return reduced;
}

/// One exchange: from the blocks of one side to those of another.
struct Move {
  const Side& from;
  const Side& to;
  /// Mesh dimensions along which each rank has a contribution, and how they are put together.
  std::vector<bool> reduced;
  ReduceOp op = ReduceOp::kSum;
  /// Which ranks want elements (and not only a fill).
  std::function<bool(const Coordinate&)> wants;
};

/// Runs a move. `source` and `target` hold the calling rank's block of either side; they are not
/// looked at where it has none.
void run(const Move& move, const Tensor& source, const Tensor& target, MeshGroups& groups,
         Deadline deadline) {
  const DeviceMesh& mesh = groups.mesh();
  const Coordinate me = *mesh.coordinate(groups.rank());
  const std::int64_t index = *mesh.index_of(groups.rank());
  const auto have = move.from.at(me);
  const auto want = move.wants(me) ? move.to.at(me) : std::nullopt;

  // Along the other dimensions a rank serves itself: what it needs of them is at its coordinate.
  std::vector<bool> active(mesh.ndim());
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    active[d] = move.reduced[d] || move.from.root(d) || move.from.placement(d).is_shard();
  }
  struct Contribution {
    std::int64_t distance = 0;
    Coordinate block;  // which block of the source: equal for the contributions to one
    blocks::Piece piece;
  };
  std::vector<blocks::Piece> outgoing;
  std::vector<Contribution> contributions;
  Coordinate peer(mesh.ndim(), 0);
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    if (!active[d]) peer[d] = me[d];
  }
  const auto next_peer = [&] {
    for (std::size_t d = mesh.ndim(); d-- > 0;) {
      if (!active[d]) continue;
      if (++peer[d] < mesh.shape()[d]) return true;
      peer[d] = 0;
    }
    return false;
  };
  do {
    const auto peer_index = [&] {
      std::int64_t at = 0;
      for (std::size_t d = 0; d < mesh.ndim(); ++d) at = at * mesh.shape()[d] + peer[d];
      return at;
    }();
    const int number = static_cast<int>(peer_index);
    if (have && move.wants(peer)) {
      if (const auto theirs = move.to.at(peer)) {
        const auto both = blocks::intersection(*have, *theirs);
        if (!both.empty()) outgoing.push_back({number, blocks::view_of(source, *have, both), {}});
      }
    }
    if (want) {
      if (const auto theirs = move.from.at(peer)) {
        const auto both = blocks::intersection(*theirs, *want);
        if (!both.empty()) {
          Coordinate block = peer;
          for (std::size_t d = 0; d < block.size(); ++d) {
            if (move.reduced[d]) block[d] = 0;
          }
          contributions.push_back({(index - peer_index + mesh.size()) % mesh.size(),
                                   std::move(block),
                                   {number, blocks::view_of(target, *want, both), {}}});
        }
      }
    }
  } while (next_peer());

  // In the order in which they arrive: the first is copied, the others are put on top.
  std::sort(contributions.begin(), contributions.end(),
            [](const auto& a, const auto& b) { return a.distance < b.distance; });
  std::map<Coordinate, bool> begun;
  std::vector<blocks::Piece> incoming;
  for (auto& c : contributions) {
    bool& later = begun[c.block];
    if (later) {
      const auto element = *element_of(c.piece.view.dtype());
      c.piece.arrive = [element, op = move.op](const Tensor& place, const Tensor& elements) {
        const std::byte* from = elements.first_byte();
        for_each_run(place, [&](std::span<std::byte> run) {
          collectives::arithmetic::reduce(run, {from, run.size()}, element, op);
          from += run.size();
        });
      };
    }
    later = true;
    incoming.push_back(std::move(c.piece));
  }
  const auto group = groups.group(mesh.names());
  blocks::exchange(*group, outgoing, incoming, deadline);
}

/// Where the reduced parts are kept until they are moved on: cut as the target is, or else along a
/// tensor dimension that gives every rank something; at coordinate 0 if there is none.
Side reduced_side(const Side& from, const std::vector<bool>& run, const Placements& to,
                  const DeviceMesh& mesh) {
  const Shape& shape = from.layout().tensor_shape();
  Placements placements = from.layout().placements();
  std::vector<bool> root(to.size());
  for (std::size_t d = 0; d < to.size(); ++d) root[d] = from.root(d);
  for (std::size_t d = 0; d < to.size(); ++d) {
    if (run[d]) placements[d] = to[d].is_shard() ? to[d] : Placement::replicate();
  }
  for (std::size_t d = 0; d < to.size(); ++d) {
    if (!run[d] || to[d].is_shard()) continue;
    Shape left = shape;
    for (std::size_t other = 0; other < to.size(); ++other) {
      if (!placements[other].is_shard()) continue;
      auto& size = left[static_cast<std::size_t>(placements[other].dim())];
      size = (size + mesh.shape()[other] - 1) / mesh.shape()[other];
    }
    const std::int64_t parts = mesh.shape()[d];
    // The first that is cut about evenly: then parts are runs of memory. Else the longest.
    auto found = std::find_if(left.begin(), left.end(), [&](std::int64_t size) {
      return size >= 4 * parts || (size > 0 && size % parts == 0);
    });
    if (found == left.end()) found = std::max_element(left.begin(), left.end());
    if (found != left.end() && *found >= parts) {
      placements[d] = Placement::shard(static_cast<int>(found - left.begin()));
    } else {
      root[d] = true;
    }
  }
  return {mesh, shape, placements, std::move(root)};
}

/// The same blocks at the same ranks, and none partial on one side only.
bool same(const Side& a, const Side& b) {
  for (std::size_t d = 0; d < a.layout().placements().size(); ++d) {
    if (a.placement(d) != b.placement(d) || a.root(d) != b.root(d)) return false;
  }
  return true;
}

void divide(const Tensor& tensor, std::int64_t divisor) {
  const auto element = *element_of(tensor.dtype());
  for_each_run(tensor, [&](std::span<std::byte> run) {
    collectives::arithmetic::divide(run, static_cast<int>(divisor), element);
  });
}

}  // namespace

Side::Side(const DeviceMesh& mesh, const Shape& shape, const Placements& placements,
           std::vector<bool> root)
    : layout_(mesh.shape(), shape, placements), root_(std::move(root)) {
  root_.resize(mesh.ndim());
}

Side Side::at_first_rank(const DeviceMesh& mesh, const Shape& shape) {
  return {mesh, shape, Placements(mesh.ndim()), std::vector<bool>(mesh.ndim(), true)};
}

std::optional<LocalShard> Side::at(const Coordinate& coordinate) const {
  for (std::size_t d = 0; d < root_.size(); ++d) {
    if (root_[d] && coordinate[d] != 0) return std::nullopt;
  }
  return layout_.at(coordinate);
}

Fill fill_at(const Placements& to, const std::vector<bool>& kept, const Coordinate& coordinate) {
  Fill what = Fill::kElements;
  for (std::size_t d = to.size(); d-- > 0;) {
    if (!to[d].is_partial() || coordinate[d] == 0) continue;
    if (kept[d] && what == Fill::kElements) continue;  // partial in the elements already
    if (to[d].op() == ReduceOp::kSum) what = Fill::kZero;
    if (to[d].op() == ReduceOp::kProduct) what = Fill::kOne;
  }
  return what;
}

void check_reducible(DType dtype, ReduceOp op) {
  const bool floating =
      dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF32 || dtype == DType::kF64;
  if (element_of(dtype) && (floating || op != ReduceOp::kAvg)) return;
  throw InvalidArgument(
      "a tensor of " + std::string(to_string(dtype)) + " cannot be partial(" +
      std::string(to_string(op)) + ") and be reduced: " +
      (op == ReduceOp::kAvg ? "avg takes floating types" : "take a signed, U8 or floating type") +
      " of up to 64 bits");
}

namespace {

/// The elements of halves as floats, or the other way round; of any strides.
Tensor converted(const Tensor& tensor, DType to) {
  const Tensor result = Tensor::empty(tensor.shape(), to);
  const Tensor from = tensor.contiguous();
  if (to == DType::kF32) {
    const std::span<float> floats(result.data<float>(), static_cast<std::size_t>(result.numel()));
    std::fill(floats.begin(), floats.end(), -0.0F);
    collectives::arithmetic::add_halves(floats, {from.first_byte(), from.nbytes()});
  } else {
    collectives::arithmetic::store_halves(
        {result.first_byte(), result.nbytes()},
        {from.data<const float>(), static_cast<std::size_t>(from.numel())});
  }
  return result;
}

}  // namespace

void redistribute_into(const Tensor& local, const Side& from, const Placements& to,
                       const Tensor& result, MeshGroups& groups, Deadline deadline) {
  const auto reduces_average = [&] {
    const auto reduced = reduced_dims(from, to);
    for (std::size_t d = 0; d < to.size(); ++d) {
      if (reduced[d] && from.placement(d).op() == ReduceOp::kAvg) return true;
    }
    return false;
  };
  if (result.dtype() == DType::kF16 && reduces_average()) {
    // The sum of halves overflows where their mean does not.
    const Tensor floats = Tensor::empty(result.shape(), DType::kF32);
    redistribute_into(local.defined() ? converted(local, DType::kF32) : local, from, to, floats,
                      groups, deadline);
    result.copy_from(converted(floats, DType::kF16));
    return;
  }
  const DeviceMesh& mesh = groups.mesh();
  const Coordinate me = *mesh.coordinate(groups.rank());
  const Side wanted(mesh, from.layout().tensor_shape(), to);
  const std::vector<bool> reduced = reduced_dims(from, to);
  std::vector<bool> kept(to.size());
  for (std::size_t d = 0; d < to.size(); ++d) {
    kept[d] = from.placement(d).is_partial() && !reduced[d];
    if (reduced[d]) check_reducible(result.dtype(), from.placement(d).op());
  }
  const auto wants_elements = [&](const Coordinate& at) {
    return fill_at(to, kept, at) == Fill::kElements;
  };
  bool fills = false;  // somewhere
  for (std::size_t d = 0; d < to.size(); ++d) fills = fills || (to[d].is_partial() && !kept[d]);

  Side now = from;
  Tensor held = local;
  for (std::size_t begin = 0; begin < to.size();) {
    // A run: dimensions of one family, reduced together.
    if (!reduced[begin]) {
      ++begin;
      continue;
    }
    const ReduceOp op = family(now.placement(begin).op());
    std::vector<bool> together(to.size());
    std::int64_t divisor = 1;
    std::size_t end = begin;
    for (; end < to.size(); ++end) {
      if (!reduced[end]) continue;
      if (family(now.placement(end).op()) != op) break;
      together[end] = true;
      if (now.placement(end).op() == ReduceOp::kAvg) divisor *= mesh.shape()[end];
    }
    const Side next = reduced_side(now, together, to, mesh);
    const auto mine = next.at(me);
    const auto final_block = wanted.at(me);
    Tensor parts;
    if (mine) {
      // Within the result where that has room for them: they will not have to be moved. What the
      // last run left there is sent on meanwhile: to others, who keep other blocks than this one.
      const bool within = wants_elements(me) && blocks::contains(*final_block, *mine);
      parts = within ? blocks::view_of(result, *final_block, *mine)
                     : Tensor::empty(mine->shape, result.dtype());
    }
    run({now, next, together, op, [](const Coordinate&) { return true; }}, held, parts, groups,
        deadline);
    if (mine && divisor != 1) divide(parts, divisor);
    now = next;
    held = parts;
    begin = end;
  }
  const bool in_place =
      held.defined() && held.storage() == result.storage() && held.numel() == result.numel();
  if (!fills && same(now, wanted) && in_place) return;
  run({now, wanted, std::vector<bool>(to.size()), ReduceOp::kSum, wants_elements}, held, result,
      groups, deadline);
  fill(result, fill_at(to, kept, me));
}

}  // namespace meshstage::dtensor
