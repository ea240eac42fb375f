#pragma once
#include <string_view>

#include <meshstage/mesh/mesh_file.hpp>
#include "tools/mesh/svg.hpp"

namespace meshstage::tools {

/// True if the ring shows ranks; hosts where there are too many ranks.
[[nodiscard]] bool ring_has_ranks(const MeshDescription& job);

/// Draws who holds whose copies as arrows across a ring of ranks or hosts, at (left, top) and
/// `width` wide; hosts are named without `suffix`, with which all their names end. Returns where it
/// ends below.
double draw_ring(Svg& svg, const MeshDescription& job, std::string_view suffix, double left,
                 double top, double width);

}  // namespace meshstage::tools
