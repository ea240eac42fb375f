#include <fmt/format.h>

#include <algorithm>
#include <ostream>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/mesh_file.hpp>
#include <meshstage/mesh/replicated.hpp>
#include <meshstage/mesh/text.hpp>

#include "tools/mesh/blocks.hpp"
#include "tools/mesh/json_out.hpp"
#include "tools/mesh/options.hpp"
#include "tools/mesh/words.hpp"

namespace meshstage::tools {
namespace {

constexpr std::size_t kColumns = 8;
constexpr std::size_t kRows = 16;
constexpr std::size_t kSlices = 4;
constexpr std::size_t kCellWidth = 20;

// What is shown: a tensor, and the mesh that it lies on, or a part of.
struct Shown {
  DeviceMesh mesh;
  TensorSpec tensor;
};

void shard_json(const Shown& shown, std::ostream& out) {
  const TensorPlace place = place_of(shown.mesh, shown.tensor);
  const Layout layout(place.mesh.shape(), shown.tensor.shape, place.placements);
  JsonOut json(out);
  json.begin_object();
  json.key("mesh").list(shown.mesh.shape());
  if (!shown.tensor.only.empty()) {
    json.key("only").begin_object();
    for (const auto& [dim, coordinate] : shown.tensor.only) json.key(dim).value(coordinate);
    json.end_object();
  }
  json.key("tensor").list(layout.tensor_shape());
  json.key("placements").begin_list();
  for (const Placement& p : free_placements(shown.mesh, shown.tensor, layout)) {
    json.value(p.to_string());
  }
  json.end_list();
  json.key("ranks").begin_list();
  LocalShard shard;
  by_rank(place.mesh, [&](int rank, const std::vector<std::int64_t>& coordinate) {
    layout.at(coordinate, shard);
    json.begin_object();
    json.key("coordinate").list(shown.mesh.coordinate(rank).value());
    json.key("shape").list(shard.shape);
    json.key("offset").list(shard.offset);
    json.end_object();
  });
  json.end_list();
  json.end_object();
  json.finish();
}

std::string repeated(const char* what, std::size_t n) {
  std::string out;
  for (std::size_t i = 0; i < n; ++i) out += what;
  return out;
}

// A grid of labels with a frame: columns along the last tensor dimension.
std::string grid(const std::vector<std::string>& columns, const std::vector<std::string>& rows,
                 const std::vector<std::vector<std::string>>& cells) {
  std::size_t left = 0;
  for (const auto& r : rows) left = std::max(left, r.size());
  std::size_t width = 0;
  for (const auto& c : columns) width = std::max(width, c.size());
  for (const auto& row : cells) {
    for (const auto& c : row) width = std::max(width, c.size());
  }
  const auto rule = [&](const char* first, const char* middle, const char* last) {
    std::string out = std::string(left + 3, ' ') + first;
    for (std::size_t c = 0; c < columns.size(); ++c) {
      out += (c > 0 ? middle : "") + repeated("─", width + 2);
    }
    return out + last + "\n";
  };
  std::string out(left + 4, ' ');
  for (const auto& c : columns) out += fmt::format(" {:^{}}  ", c, width);
  out.erase(out.find_last_not_of(' ') + 1);
  out += "\n" + rule("┌", "┬", "┐");
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (r > 0) out += rule("├", "┼", "┤");
    out += fmt::format("  {:>{}} │", rows[r], left);
    for (const auto& c : cells[r]) out += fmt::format(" {:^{}} │", c, width);
    out += "\n";
  }
  return out + rule("└", "┴", "┘");
}

void shard_picture(const Shown& shown, std::optional<std::size_t> width, std::ostream& out) {
  const TensorPlace place = place_of(shown.mesh, shown.tensor);
  const DeviceMesh& mesh = place.mesh;
  const Layout layout(mesh.shape(), shown.tensor.shape, place.placements);
  out << fmt::format("tensor {} as {} on mesh {}{}\n", sizes_words(shown.tensor.shape),
                     to_string(free_placements(shown.mesh, shown.tensor, layout)),
                     dims_words(shown.mesh), only_words(shown.tensor));
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    const Placement& p = layout.placements()[d];
    const auto at = std::find_if(shown.tensor.only.begin(), shown.tensor.only.end(),
                                 [&](const auto& c) { return c.dim == mesh.names()[d]; });
    out << fmt::format(
        "  {}: {}\n", mesh.names()[d],
        at != shown.tensor.only.end() ? fmt::format("only the ranks at {} have it", at->coordinate)
        : p.is_replicate()            ? std::string("each rank of a group has the same")
        : p.is_shard()
            ? fmt::format("cuts tensor dimension {} in {}", p.dim(), mesh.shape()[d])
            : fmt::format("each rank of a group has a contribution ({})", to_string(p.op())));
  }
  const Blocks blocks(mesh, layout);
  out << fmt::format("  a rank has {} of {} elements\n",
                     blocks.least() == blocks.most()
                         ? std::to_string(blocks.most())
                         : fmt::format("{} to {}", blocks.least(), blocks.most()),
                     layout.numel());
  if (layout.numel() > 0) {
    std::size_t columns = std::min(blocks.columns(), kColumns);
    const std::size_t rows = std::min(blocks.rows(), kRows);
    const std::size_t slices = std::min(blocks.slices(), kSlices);
    const Blocks::Ranks ranks = blocks.ranks(slices, rows, columns);
    const auto cell = [&](std::size_t slice, std::size_t row, std::size_t column) {
      return short_ranks(ranks[slice][row][column], kCellWidth);
    };
    std::vector<std::string> row_labels;
    std::size_t left = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      row_labels.push_back(blocks.row_label(r));
      left = std::max(left, row_labels.back().size());
    }
    if (width) {
      std::size_t widest = 0;
      for (std::size_t c = 0; c < columns; ++c) {
        widest = std::max(widest, blocks.column_label(c).size());
        for (std::size_t s = 0; s < slices; ++s) {
          for (std::size_t r = 0; r < rows; ++r) widest = std::max(widest, cell(s, r, c).size());
        }
      }
      const std::size_t frame = left + 4;  // before the first cell; each has three more
      const std::size_t room = std::max(*width, frame) - frame;
      columns = std::clamp(room / (widest + 3), std::size_t{1}, columns);
    }
    std::vector<std::string> column_labels;
    for (std::size_t c = 0; c < columns; ++c) column_labels.push_back(blocks.column_label(c));
    for (std::size_t s = 0; s < slices; ++s) {
      const std::string where = blocks.slice_label(s);
      out << (where.empty() ? "\n" : fmt::format("\n  [{}]\n", where));
      std::vector<std::vector<std::string>> cells(rows, std::vector<std::string>(columns));
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t c = 0; c < columns; ++c) cells[r][c] = cell(s, r, c);
      }
      out << grid(column_labels, row_labels, cells);
    }
    const auto more = [&](std::size_t drawn, std::size_t all, const char* what) {
      if (drawn < all) out << fmt::format("  ... and {} more {}\n", all - drawn, what);
    };
    more(columns, blocks.columns(), "columns");
    more(rows, blocks.rows(), "rows");
    more(slices, blocks.slices(), "slices");
    out << "  numbers in the cells are ranks\n";
  }
  if (!blocks.without().empty()) {
    out << fmt::format("  ranks without elements: {}\n", short_ranks(blocks.without(), 60));
  }
}

Shown read_shown(const ShardOptions& options) {
  Shown shown{read_mesh(options.mesh), {}};
  std::string names;
  if (!options.mesh.file.empty()) {
    for (const auto& tensor : load_mesh_file(options.mesh.file).tensors) {
      names += (names.empty() ? "" : ", ") + text::quoted(tensor.name);
      if (tensor.name != options.tensor) continue;
      shown.tensor = tensor;
      // Other placements than the file's are for the whole mesh.
      if (options.placements) shown.tensor.only.clear();
      if (options.placements) shown.tensor.placements = parse_placements(*options.placements);
      return shown;
    }
  }
  if (!options.placements) {
    throw InvalidArgument("--placements is required, one for each mesh dimension" +
                          (options.mesh.file.empty()
                               ? std::string()
                               : ": " + options.mesh.file + " has no tensor " +
                                     text::quoted(options.tensor) +
                                     (names.empty() ? ", and no other" : "; it has " + names)));
  }
  if (!options.tensor.empty()) shown.tensor.shape = read_numbers(options.tensor, 0, "--tensor");
  shown.tensor.placements = parse_placements(*options.placements);
  return shown;
}

}  // namespace

int mesh_shard(const ShardOptions& options, std::ostream& out) {
  const Shown shown = read_shown(options);
  if (options.json) {
    shard_json(shown, out);
  } else {
    shard_picture(shown, options.width, out);
  }
  return 0;
}

}  // namespace meshstage::tools
