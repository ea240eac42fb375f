// Any bytes as a mesh file: errors or a description in which everything fits together.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/mesh_file.hpp>
#include <meshstage/mesh/survive.hpp>

using namespace meshstage;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  // Small limits, so that a large mesh is an error and not a slow input.
  const MeshFileResult result = parse_mesh_file(text, {.ranks = 4096, .copies = 16384});
  for (const MeshFileError& e : result.errors) {
    if (e.message.empty() || e.line < 0 || to_string(e).empty()) std::abort();
    for (const char c : to_string(e)) {
      if (c == '\n') std::abort();
    }
  }
  if (result.description.has_value() != result.errors.empty()) std::abort();
  if (!result.description) return 0;
  const MeshDescription& d = *result.description;
  check_holders(d.holders, d.domains.world_size());
  SurviveOptions options;
  options.enumerate_at_most = 1000;
  const SurviveReport report = survive(d.domains, d.holders, d.mesh, d.tensors, options);
  if (report.tensors.size() != d.tensors.size()) std::abort();
  for (const TensorSpec& tensor : d.tensors) {
    const TensorPlace place = place_of(d.mesh, tensor);
    const Layout layout(place.mesh.shape(), tensor.shape, place.placements);
    const int last_rank = place.mesh.rank_at(place.mesh.size() - 1);
    if (!d.mesh.contains(last_rank)) std::abort();
    const LocalShard last = layout.at(*place.mesh.coordinate(last_rank));
    for (std::size_t t = 0; t < tensor.shape.size(); ++t) {
      if (last.offset[t] < 0 || last.offset[t] + last.shape[t] > tensor.shape[t]) std::abort();
    }
  }
  return 0;
}
