// The states of a job that is over, as its images have them.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/reshard/assembly.hpp>
#include <meshstage/dtensor/node.hpp>
#include <meshstage/sharded/node.hpp>

#include "tests/support/counted.hpp"
#include "tests/support/states.hpp"

namespace meshstage::test {

inline BoxReaders all_readers() {
  BoxReaders readers;
  dtensor::register_boxes(readers);
  sharded::register_boxes(readers);
  return readers;
}

/// What is decoded, without a registry, from the image of each rank's state.
inline std::vector<Value> old_job(int ranks, const std::function<Dict(int rank)>& state_of) {
  std::vector<Value> states;
  for (int rank = 0; rank < ranks; ++rank) {
    const auto image = std::make_shared<TestImage>(make_image(state_of(rank)));
    states.push_back(decode_image(image->bytes(), image));
  }
  return states;
}

inline void assemble(const std::vector<Value>& old, Dict& state, int rank, int world_size,
                     ReshardOptions options = {}) {
  options.readers = all_readers();
  Assembly::plan(old, state, rank, world_size, options).write();
}

/// The box of a whole tensor, in memory of its own; transposed there if `strided`.
inline Tensor cut(const Tensor& whole, const Box& box, bool strided = false) {
  const Tensor part = view_of(whole, {whole.shape(), Shape(whole.dim(), 0)}, box);
  if (!strided || part.dim() < 2) return part.clone();
  return part.transpose(0, 1).clone().transpose(0, 1);
}

/// A DTensor of the whole tensor's elements, or of zeros.
inline DTensor placed(const Tensor& whole, const DeviceMesh& mesh, const Placements& placements,
                      int rank, bool strided = false) {
  const DTensorSpec spec{mesh, placements, whole.dtype(), whole.shape(),
                         contiguous_strides(whole.shape())};
  const Box box = local_shard(mesh, rank, whole.shape(), placements);
  return DTensor::from_spec(cut(whole, box, strided), spec, rank);
}

}  // namespace meshstage::test
