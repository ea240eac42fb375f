// meshstage mesh reshard: who sends which box of a tensor to whom.
#include <fmt/format.h>

#include <algorithm>
#include <ostream>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/reshard.hpp>

#include "tools/mesh/json_out.hpp"
#include "tools/mesh/options.hpp"
#include "tools/mesh/words.hpp"

namespace meshstage::tools {
namespace {

constexpr std::size_t kRows = 64;

/// "0:342, 0:512".
std::string box_words(const ReshardBox& box) {
  std::string text;
  for (std::size_t d = 0; d < box.shape.size(); ++d) {
    text += fmt::format("{}{}:{}", d == 0 ? "" : ", ", box.offset[d], box.offset[d] + box.shape[d]);
  }
  return text.empty() ? "the element" : text;
}

std::int64_t elements_in(const ReshardBox& box) {
  std::int64_t n = 1;
  for (const auto s : box.shape) n *= s;
  return n;
}

/// The same where the meshes have equally many dimensions; else the first cut before, along the
/// first dimension after.
Placements placements_after(const Placements& before, std::size_t dims) {
  if (before.size() == dims) return before;
  Placements after(dims, Placement::replicate());
  const auto cut =
      std::find_if(before.begin(), before.end(), [](const Placement& p) { return p.is_shard(); });
  if (cut != before.end() && dims > 0) after.front() = *cut;
  return after;
}

PlacedTensor read_side(const std::string& mesh, const std::string& option) {
  if (mesh.empty()) throw InvalidArgument(option + " is required: sizes of a mesh, such as 2,4");
  return {read_mesh({mesh, "", ""}), {}};
}

}  // namespace

int mesh_reshard(const ReshardOptions& options, std::ostream& out) {
  auto before = read_side(options.from, "--from");
  auto after = read_side(options.to, "--to");
  before.placements = parse_placements(options.placements);
  after.placements = options.to_placements ? parse_placements(*options.to_placements)
                                           : placements_after(before.placements, after.mesh.ndim());
  std::vector<std::int64_t> tensor;
  if (!options.tensor.empty()) tensor = read_numbers(options.tensor, 0, "--tensor");
  const auto boxes = plan_reshard(before, after, tensor);
  std::int64_t moved = 0, kept = 0;
  for (const auto& box : boxes) (box.from == box.to ? kept : moved) += elements_in(box);
  if (options.json) {
    JsonOut json(out);
    json.begin_object();
    json.key("tensor").list(tensor);
    const auto side = [&](const char* name, const PlacedTensor& placed) {
      json.key(name).begin_object();
      json.key("mesh").list(placed.mesh.shape());
      json.key("placements").value(to_string(placed.placements));
      json.end_object();
    };
    side("from", before);
    side("to", after);
    json.key("moved_elements").value(moved);
    json.key("kept_elements").value(kept);
    json.key("boxes").begin_list();
    for (const auto& box : boxes) {
      json.begin_object();
      json.key("from").value(std::int64_t{box.from});
      json.key("to").value(std::int64_t{box.to});
      json.key("offset").list(box.offset);
      json.key("shape").list(box.shape);
      json.end_object();
    }
    json.end_list();
    json.end_object();
    json.finish();
    return 0;
  }
  out << fmt::format("tensor {}: {} on mesh {} to {} on mesh {}\n\n", sizes_words(tensor),
                     to_string(before.placements), sizes_words(before.mesh.shape()),
                     to_string(after.placements), sizes_words(after.mesh.shape()));
  Table table({"to", "from", "elements", "box"});
  for (std::size_t i = 0; i < std::min(boxes.size(), kRows); ++i) {
    const auto& box = boxes[i];
    table.add({std::to_string(box.to), std::to_string(box.from), std::to_string(elements_in(box)),
               box_words(box)});
  }
  if (!boxes.empty()) out << table.str();
  if (boxes.size() > kRows) out << fmt::format("  ... and {} more\n", boxes.size() - kRows);
  out << fmt::format("\n{} elements are sent, {} stay with their rank\n", moved, kept);
  return 0;
}

}  // namespace meshstage::tools
