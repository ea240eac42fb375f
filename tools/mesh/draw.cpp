#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>
#include <ostream>

#include <meshstage/core/error/error.hpp>
#include "tools/mesh/blocks.hpp"
#include "tools/mesh/options.hpp"
#include "tools/mesh/ring.hpp"
#include "tools/mesh/svg.hpp"
#include "tools/mesh/words.hpp"

namespace meshstage::tools {
namespace {

constexpr int kMostRanks = 512;  // drawn one by one; the rest is a line of text
constexpr double kMargin = 24;
constexpr const char* kQuiet = "#667085";
constexpr const char* kFrame = "#c4cad4";

using Anchor = Svg::Anchor;

// How large things are drawn, by the number of ranks.
struct Scale {
  double page, cell_width, cell_height, number, small;
};
Scale scale_for(int ranks) {
  if (ranks <= 16) return {1100, 92, 66, 20, 11.5};
  if (ranks <= 64) return {1280, 66, 54, 15, 10};
  return {1848, 50, 45, 12.5, 9};
}

// From a dot on, what all names of hosts end with: ".cluster.example.org".
std::string common_suffix(const FailureDomains& domains) {
  const std::string& first = domains.host(0).name;
  const auto dot = first.find('.');
  if (dot == std::string::npos || domains.hosts() < 2) return {};
  std::string suffix = first.substr(dot);
  for (int h = 1; h < domains.hosts() && !suffix.empty(); ++h) {
    const std::string& name = domains.host(h).name;
    while (!suffix.empty() && (!name.ends_with(suffix) || name.size() == suffix.size())) {
      const auto next = suffix.find('.', 1);
      suffix = next == std::string::npos ? std::string() : suffix.substr(next);
    }
  }
  return suffix;
}

// The picture is made from top to bottom; y_ is where the next part begins.
class Picture {
 public:
  Picture(const MeshDescription& job, const TensorSpec* tensor)
      : job_(job),
        tensor_(tensor),
        drawn_(std::min(job.domains.world_size(), kMostRanks)),
        scale_(scale_for(drawn_)),
        suffix_(common_suffix(job.domains)) {
    if (tensor != nullptr) {
      place_.emplace(place_of(job.mesh, *tensor));
      layout_.emplace(place_->mesh.shape(), tensor->shape, place_->placements);
      if (layout_->numel() > 0) blocks_.emplace(place_->mesh, *layout_);
    }
  }

  std::string draw() {
    title();
    hosts();
    const double top = y_;
    dims();
    const double left_bottom = y_;
    y_ = top;
    ring();
    y_ = std::max(y_, left_bottom);
    if (blocks_) blocks();
    return svg_.document(scale_.page, y_ + kMargin);
  }

 private:
  // `more` stands behind the words where it has room up to `right`, else below them.
  void heading(double x, double right, std::string_view words, std::string_view more) {
    const double size = fitting_size(words, 16, 9, (right - x) / 1.08);
    svg_.text(x, y_ + 16, size, words, Anchor::kStart, "#222222", true);
    const double behind = x + text_width(words, size) * 1.08 + 12;
    if (behind + text_width(more, 12) <= right) {
      svg_.text(behind, y_ + 16, 12, more, Anchor::kStart, kQuiet);
    } else {
      y_ += 20;
      svg_.text(x, y_ + 16, fitting_size(more, 12, 7, right - x), more, Anchor::kStart, kQuiet);
    }
    y_ += 30;
  }

  void title() {
    y_ = kMargin;
    const double room = scale_.page - 2 * kMargin;
    const std::string mesh = fmt::format("Mesh {}", dims_words(job_.mesh));
    svg_.text(kMargin, y_ + 22, fitting_size(mesh, 22, 9, room / 1.1), mesh, Anchor::kStart,
              "#111111", true);
    y_ += 48;
    const int world = job_.domains.world_size();
    const std::string about =
        fmt::format("{} ranks on {} host{}{} · partners: {}{}", world, job_.domains.hosts(),
                    job_.domains.hosts() == 1 ? "" : "s",
                    job_.domains.racks() > 0 ? fmt::format(" in {} rack{}", job_.domains.racks(),
                                                           job_.domains.racks() == 1 ? "" : "s")
                                             : std::string(),
                    partners_words(job_),
                    tensor_ != nullptr ? fmt::format(" · colours: blocks of {}", tensor_->name)
                                       : std::string());
    svg_.text(kMargin, y_, fitting_size(about, 14, 8, room), about, Anchor::kStart, kQuiet);
    y_ += 26;
  }

  // The colour of a block: its hue by the longer way it is cut, its lightness by the other.
  [[nodiscard]] std::string block_color(const Blocks::Place& at) const {
    const std::size_t rows = blocks_->rows() * blocks_->slices();
    const std::size_t row = at.slice * blocks_->rows() + at.row;
    const std::size_t columns = blocks_->columns();
    const bool by_row = rows >= columns;
    const auto hue_of = static_cast<double>(by_row ? row : at.column);
    const auto hues = static_cast<double>(std::max(rows, columns));
    const auto light_of = static_cast<double>(by_row ? at.column : row);
    const auto lights = static_cast<double>(std::min(rows, columns));
    const double light = lights < 2 ? 0.82 : 0.89 - 0.17 * light_of / (lights - 1);
    return color(205 + 360 * hue_of / hues, 0.62, light);
  }
  [[nodiscard]] std::string rank_color(int rank) const {
    if (!blocks_ || !job_.mesh.contains(rank)) return "#eef1f5";
    const auto coordinate = place_->mesh.coordinate(rank);
    if (!coordinate) return "#ffffff";  // on another part of the mesh
    const LocalShard shard = layout_->at(*coordinate);
    return shard.empty() ? "#ffffff" : block_color(blocks_->place(shard));
  }

  void rank_cell(int rank, double x, double y) {
    const double w = scale_.cell_width - 4;
    svg_.rect({x, y, w, scale_.cell_height - 4}, rank_color(rank), "#98a2b3", 4);
    const double middle = x + w / 2;
    double line = y + scale_.number * 1.15;
    svg_.text(middle, line, scale_.number, std::to_string(rank), Anchor::kMiddle, "#111111", true);
    line += scale_.small * 1.35;
    // A long list is written smaller before it is cut: a picture can be enlarged.
    const auto small = [&](const std::string& words) {
      const double size = fitting_size(words, scale_.small, 4.5, w - 2);
      svg_.text(middle, line, size, fitted(words, size, w - 2), Anchor::kMiddle, "#344054");
      line += scale_.small * 1.3;
    };
    const auto coordinate = job_.mesh.coordinate(rank);
    small(coordinate ? fmt::format("{}", fmt::join(*coordinate, ",")) : "-");
    const auto& holders = job_.holders[static_cast<std::size_t>(rank)];
    if (!holders.empty()) small("→ " + short_ranks(holders, 24));
  }

  // Ranks in one line of a host's frame.
  static std::size_t columns_of(std::size_t ranks) {
    return ranks <= 4 ? ranks : ranks <= 32 ? 4 : ranks <= 64 ? 8 : 16;
  }

  void hosts() {
    heading(kMargin, scale_.page - kMargin, "Ranks by host",
            fmt::format("in a cell: rank, coordinate ({}), → the holder of its copy{}",
                        fmt::join(job_.mesh.names(), ","),
                        suffix_.empty() ? std::string() : " · hosts' names end with " + suffix_));
    // Hosts in the order of their racks, so that a rack is one run.
    std::vector<int> order(static_cast<std::size_t>(job_.domains.hosts()));
    for (std::size_t h = 0; h < order.size(); ++h) order[h] = static_cast<int>(h);
    const auto rack_of = [&](int h) { return job_.domains.rack_of(job_.domains.host(h).ranks[0]); };
    const bool racks = job_.domains.racks() > 0;
    if (racks) {
      std::stable_sort(order.begin(), order.end(),
                       [&](int a, int b) { return rack_of(a) < rack_of(b); });
    }
    double x = kMargin;
    double line_height = 0;
    int shown = 0;
    int last_rack = -1;
    std::size_t done = 0;
    for (const int h : order) {
      const Host& host = job_.domains.host(h);
      const auto n = std::min<std::size_t>(host.ranks.size(), kMostRanks);
      if (shown + static_cast<int>(n) > kMostRanks) break;
      shown += static_cast<int>(n);
      ++done;
      const std::size_t columns = columns_of(n);
      const std::size_t rows = (n + columns - 1) / columns;
      const double width = static_cast<double>(columns) * scale_.cell_width + 12;
      const double height = static_cast<double>(rows) * scale_.cell_height + 30;
      const bool new_rack = racks && rack_of(h) != last_rack;
      if (new_rack || (x > kMargin && x + width > scale_.page - kMargin)) {
        if (x > kMargin) y_ += line_height + 10;
        x = kMargin;
        line_height = 0;
      }
      if (new_rack) {
        last_rack = rack_of(h);
        const std::string& name = job_.domains.rack_name(last_rack);
        const std::string words = name.rfind("rack", 0) == 0 ? name : "rack " + name;
        svg_.text(kMargin, y_ + 12, 13, words, Anchor::kStart, kQuiet, true);
        svg_.line(kMargin + text_width(words, 13) * 1.1 + 10, y_ + 8, scale_.page - kMargin, y_ + 8,
                  kFrame);
        y_ += 22;
      }
      svg_.rect({x, y_, width, height}, "#fafbfc", kFrame, 6);
      const std::string name = host.name.substr(0, host.name.size() - suffix_.size());
      const double room = (width - 14) / 1.1;  // bold
      const double size = fitting_size(name, 12, 5, room);
      svg_.text(x + 8, y_ + 16, size, fitted(name, size, room), Anchor::kStart, kQuiet, true);
      for (std::size_t i = 0; i < n; ++i) {
        const std::size_t row = i / columns;
        rank_cell(host.ranks[i], x + 8 + static_cast<double>(i % columns) * scale_.cell_width,
                  y_ + 24 + static_cast<double>(row) * scale_.cell_height);
      }
      x += width + 10;
      line_height = std::max(line_height, height);
    }
    y_ += line_height + 12;
    if (shown < job_.domains.world_size()) {
      svg_.text(kMargin, y_ + 10, 13,
                fmt::format("… and {} more ranks on {} more hosts, not drawn",
                            job_.domains.world_size() - shown, order.size() - done),
                Anchor::kStart, kQuiet);
      y_ += 24;
    }
    y_ += 16;
  }

  // For each dimension the group of the first rank, cell by cell, and whether it leaves the host.
  void dims() {
    const double right = scale_.page / 2 - 12;
    heading(kMargin, right, "Dimensions", "the first group along each");
    constexpr double kCell = 38;
    for (std::size_t d = 0; d < job_.mesh.ndim(); ++d) {
      const std::string& name = job_.mesh.names()[d];
      const std::vector<int> group = job_.mesh.group(job_.mesh.rank_at(0), name);
      std::vector<int> hosts;
      for (const int r : group) hosts.push_back(job_.domains.host_of(r));
      std::sort(hosts.begin(), hosts.end());
      hosts.erase(std::unique(hosts.begin(), hosts.end()), hosts.end());
      const std::string more =
          fmt::format("{} group{} of {} · {}{}", job_.mesh.size() / job_.mesh.shape()[d],
                      job_.mesh.size() == job_.mesh.shape()[d] ? "" : "s", group.size(),
                      hosts.size() == 1 ? std::string("stays on one host")
                                        : fmt::format("crosses {} hosts", hosts.size()),
                      layout_ ? " · " + placement_words(d) : std::string());
      const double name_size = fitting_size(name, 13, 6, (right - kMargin) / 1.1);
      const double behind = kMargin + text_width(name, name_size) * 1.1 + 10;
      const bool below = behind + text_width(more, 12) > right;
      svg_.text(kMargin, y_ + 13, name_size, name, Anchor::kStart, "#222222", true);
      if (below) y_ += 17;
      svg_.text(below ? kMargin : behind, y_ + 13,
                fitting_size(more, 12, 7, right - (below ? kMargin : behind)), more, Anchor::kStart,
                kQuiet);
      y_ += 22;
      const auto fits = static_cast<std::size_t>((right - kMargin - 40) / kCell);
      const std::size_t n = std::min(group.size(), fits);
      for (std::size_t i = 0; i < n; ++i) {
        const double x = kMargin + static_cast<double>(i) * kCell;
        if (i > 0) svg_.line(x - 6, y_ + 13, x, y_ + 13, "#98a2b3", 1.5);
        svg_.rect({x, y_, kCell - 6, 26}, rank_color(group[i]), "#98a2b3", 4);
        svg_.text(x + (kCell - 6) / 2, y_ + 17.5, group[i] > 999 ? 10 : 12,
                  std::to_string(group[i]), Anchor::kMiddle, "#111111");
      }
      if (n < group.size()) {
        svg_.text(kMargin + static_cast<double>(n) * kCell, y_ + 18, 12,
                  fmt::format("+{}", group.size() - n), Anchor::kStart, kQuiet);
      }
      y_ += 44;
    }
  }

  [[nodiscard]] std::string placement_words(std::size_t d) const {
    for (const auto& [dim, coordinate] : tensor_->only) {
      if (dim == job_.mesh.names()[d]) return fmt::format("the tensor is at {} alone", coordinate);
    }
    const Placement& p = layout_->placements()[d];
    return p.is_replicate() ? "the tensor is the same on each"
           : p.is_shard()   ? fmt::format("cuts the tensor's dimension {}", p.dim())
                            : "each has a contribution to the tensor";
  }

  void ring() {
    const double left = scale_.page / 2 + 12;
    heading(left, scale_.page - kMargin, "Partners",
            ring_has_ranks(job_)
                ? "an arrow leads from a rank to the holder of its copy; arcs are hosts"
                : "an arrow leads from a host to one that holds copies of its ranks");
    y_ = draw_ring(svg_, job_, suffix_, left, y_, scale_.page - kMargin - left);
  }

  // A tensor's blocks are drawn in panels: one for each slice, and where that has many rows or
  // columns, one for each band of them.
  struct Panel {
    std::size_t slice, row, rows, column, columns;
  };
  struct Panels {
    std::vector<Panel> all;
    std::size_t cells = 0;   // in all of them
    std::size_t slices = 0;  // that are begun
    std::size_t across = 1;  // panels in a line
    bool row_labels = true, column_labels = true;
    double left = 0, pitch = 0, line_height = 0, cell_width = 0, cell_height = 0, label = 12;
  };
  static constexpr std::size_t kBand = 32;
  [[nodiscard]] Panels panels() const {
    Panels p;
    for (std::size_t s = 0; s < blocks_->slices(); ++s) {
      for (std::size_t r = 0; r < blocks_->rows(); r += kBand) {
        for (std::size_t c = 0; c < blocks_->columns(); c += kBand) {
          const Panel next{s, r, std::min(kBand, blocks_->rows() - r), c,
                           std::min(kBand, blocks_->columns() - c)};
          p.cells += next.rows * next.columns;
          if (p.cells > std::size_t{kMostRanks} && !p.all.empty()) {
            p.cells -= next.rows * next.columns;
            return placed(std::move(p));
          }
          p.all.push_back(next);
          p.slices = s + 1;
        }
      }
    }
    return placed(std::move(p));
  }
  // So large that all take about a page, but not so small that numbers have no room.
  [[nodiscard]] Panels placed(Panels p) const {
    constexpr double kHeight = 1600;
    const auto columns = static_cast<double>(p.all.front().columns);
    const bool slices = blocks_->slices() > 1;
    p.row_labels = !blocks_->row_label(0).empty() && (blocks_->rows() > 1 || !slices);
    p.column_labels = !blocks_->column_label(0).empty() && (blocks_->columns() > 1 || !slices);
    p.cell_height = p.all.front().rows > 8 ? 22 : 34;
    p.line_height = p.cell_height * static_cast<double>(p.all.front().rows) +
                    (p.column_labels ? 42 : 26) + (slices ? 6 : 0);
    const double gap = p.row_labels ? 84 : 14;
    p.left = kMargin + 84;
    const double room = scale_.page - kMargin - p.left;
    p.label = p.all.size() > 16 ? 10 : 12;
    const double label =
        slices ? text_width(blocks_->slice_label(p.slices - 1), p.label) + p.label : 0;
    const double wanted =
        std::ceil(static_cast<double>(p.all.size()) * p.line_height / kHeight - 0.01);
    const double least = std::max({8.0, columns > 8 ? 0.0 : 36.0, label / columns});
    p.cell_width =
        std::min(std::clamp(((room + gap) / wanted - gap) / columns, least, std::max(least, 260.0)),
                 room / columns);
    p.pitch = p.cell_width * columns + gap;
    p.across = static_cast<std::size_t>(std::max(1.0, std::floor((room + gap + 0.5) / p.pitch)));
    return p;
  }

  void panel(const Panels& p, const Panel& at,
             const std::vector<std::vector<std::vector<int>>>& ranks, double x0, double y0) {
    double top = y0 + (p.column_labels ? 18 : 4);
    const std::string slice = blocks_->slice_label(at.slice);
    if (!slice.empty()) {
      svg_.text(x0, y0 + 2, p.label, "[" + slice + "]", Anchor::kStart, "#222222", true);
      top += 6;
    }
    for (std::size_t c = 0; p.column_labels && c < at.columns; ++c) {
      const std::string label = blocks_->column_label(at.column + c);
      const double size = fitting_size(label, 10, 7, p.cell_width - 5);
      if (text_width(label, size) > p.cell_width - 1) continue;
      svg_.text(x0 + (static_cast<double>(c) + 0.5) * p.cell_width, top - 5, size, label,
                Anchor::kMiddle, kQuiet);
    }
    for (std::size_t r = 0; r < at.rows; ++r) {
      const double y = top + static_cast<double>(r) * p.cell_height;
      if (p.row_labels) {
        const std::string label = blocks_->row_label(at.row + r);
        const double size = fitting_size(label, 10, 7.5, 76);
        svg_.text(x0 - 6, y + p.cell_height / 2 + 3.5, size, fitted(label, size, 78), Anchor::kEnd,
                  kQuiet);
      }
      for (std::size_t c = 0; c < at.columns; ++c) {
        const double x = x0 + static_cast<double>(c) * p.cell_width;
        svg_.rect({x, y, p.cell_width, p.cell_height},
                  block_color({at.slice, at.row + r, at.column + c}), "#98a2b3");
        const double size = p.cell_height > 30 && p.cell_width > 40 ? 12 : 10;
        const auto chars = static_cast<std::size_t>(p.cell_width / (size * 0.61));
        if (chars < 3) continue;
        svg_.text(
            x + p.cell_width / 2, y + p.cell_height / 2 + size * 0.36, size,
            fitted(short_ranks(ranks[at.row + r][at.column + c], chars), size, p.cell_width - 4),
            Anchor::kMiddle, "#111111");
      }
    }
  }

  // The tensor itself, cut as the ranks have it.
  void blocks() {
    y_ += 8;
    heading(
        kMargin, scale_.page - kMargin, fmt::format("Tensor {}", tensor_->name),
        fmt::format("{}[{}] as {}{} · a rank has {} of {} elements · numbers are ranks",
                    tensor_->dtype, sizes_words(tensor_->shape),
                    to_string(free_placements(job_.mesh, *tensor_, *layout_)), only_words(*tensor_),
                    blocks_->least() == blocks_->most()
                        ? std::to_string(blocks_->most())
                        : fmt::format("{} to {}", blocks_->least(), blocks_->most()),
                    layout_->numel()));
    const Panels p = panels();
    const Blocks::Ranks ranks =
        blocks_->ranks(p.slices, std::min(blocks_->rows(), kMostRanks + kBand),
                       std::min(blocks_->columns(), kMostRanks + kBand));
    const std::size_t lines = (p.all.size() + p.across - 1) / p.across;
    const double top = y_ + (blocks_->slices() > 1 ? 12 : 0);
    for (std::size_t i = 0; i < p.all.size(); ++i) {
      const std::size_t line = i / p.across;
      panel(p, p.all[i], ranks[p.all[i].slice],
            p.left + static_cast<double>(i % p.across) * p.pitch,
            top + static_cast<double>(line) * p.line_height);
    }
    y_ = top + static_cast<double>(lines) * p.line_height;
    const std::size_t cells = blocks_->slices() * blocks_->rows() * blocks_->columns();
    if (p.cells < cells) {
      svg_.text(p.left, y_ + 10, 12,
                fmt::format("… and {} more blocks, not drawn", cells - p.cells), Anchor::kStart,
                kQuiet);
      y_ += 18;
    }
    if (!blocks_->without().empty()) {
      svg_.text(p.left, y_ + 10, 12,
                "ranks without elements (white): " + short_ranks(blocks_->without(), 60),
                Anchor::kStart, kQuiet);
      y_ += 18;
    }
  }

  const MeshDescription& job_;
  const TensorSpec* tensor_;
  int drawn_;
  Scale scale_;
  std::string suffix_;  // of all hosts' names, said once
  std::optional<TensorPlace> place_;
  std::optional<Layout> layout_;
  std::optional<Blocks> blocks_;
  Svg svg_;
  double y_ = 0;
};

}  // namespace

int mesh_draw(const DrawOptions& options, std::ostream& out) {
  const MeshDescription job = load_mesh_file(options.file);
  const TensorSpec* tensor = job.tensors.empty() ? nullptr : &job.tensors.front();
  if (!options.tensor.empty()) {
    const auto it = std::find_if(job.tensors.begin(), job.tensors.end(),
                                 [&](const TensorSpec& t) { return t.name == options.tensor; });
    if (it == job.tensors.end()) {
      std::string names;
      for (const TensorSpec& t : job.tensors) names += (names.empty() ? "" : ", ") + t.name;
      throw InvalidArgument("--tensor " + options.tensor + " is not in " + options.file +
                            ": it has " + (names.empty() ? "no tensors" : names));
    }
    tensor = &*it;
  }
  const std::string svg = Picture(job, tensor).draw();
  if (options.output.empty() || options.output == "-") {
    out << svg;
    return 0;
  }
  std::ofstream file(options.output, std::ios::binary | std::ios::trunc);
  file << svg;
  file.close();
  if (!file) {
    throw make_error<NotFound>(
        "-o " + options.output + " cannot be written: name a file in a directory that exists", {},
        {}, options.output);
  }
  out << fmt::format("{}: {} ranks, {} hosts, {}\n", options.output, job.domains.world_size(),
                     job.domains.hosts(), bytes_words(static_cast<double>(svg.size())));
  return 0;
}

}  // namespace meshstage::tools
