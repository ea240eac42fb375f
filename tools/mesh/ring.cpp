#include "tools/mesh/ring.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

namespace meshstage::tools {
namespace {

constexpr int kMostRanks = 64;
constexpr int kMostHosts = 128;
constexpr const char* kQuiet = "#667085";

using Anchor = Svg::Anchor;

// What stands on the ring, place by place: hosts together, whatever numbers their ranks have.
struct Ring {
  bool ranks;
  std::vector<int> node;           // rank or host
  std::vector<int> home;           // host
  std::vector<std::size_t> place;  // by node

  explicit Ring(const MeshDescription& job) : ranks(ring_has_ranks(job)) {
    for (int h = 0; h < job.domains.hosts(); ++h) {
      if (ranks) {
        for (const int r : job.domains.host(h).ranks) add(r, h);
      } else {
        add(h, h);
      }
    }
    place.resize(node.size());
    for (std::size_t p = 0; p < node.size(); ++p) place[static_cast<std::size_t>(node[p])] = p;
  }
  [[nodiscard]] double angle(double at) const {
    return (at / static_cast<double>(node.size()) - 0.25) * 2 * std::numbers::pi;
  }
  [[nodiscard]] double angle_of(int which) const {
    return angle(static_cast<double>(place[static_cast<std::size_t>(which)]));
  }

 private:
  void add(int n, int h) {
    node.push_back(n);
    home.push_back(h);
  }
};

// A name outside the circle of this radius, level.
void beside(Svg& svg, double cx, double cy, double radius, double half_width, double angle,
            const std::string& name, const char* fill) {
  const double c = std::cos(angle);
  const auto anchor = std::fabs(c) < 0.3 ? Anchor::kMiddle : c > 0 ? Anchor::kStart : Anchor::kEnd;
  const double beyond = half_width - std::fabs(c) * (radius + 8);
  const double room = anchor == Anchor::kMiddle ? 2 * beyond : beyond;
  const double size = fitting_size(name, 11, 5, room);
  svg.text(cx + c * (radius + 8), cy + std::sin(angle) * (radius + 12) + 4, size,
           fitted(name, size, room), anchor, fill);
}

std::vector<std::pair<int, int>> arrows_of(const MeshDescription& job, bool ranks) {
  std::vector<std::pair<int, int>> out;
  for (int r = 0; r < job.domains.world_size(); ++r) {
    for (const int h : job.holders[static_cast<std::size_t>(r)]) {
      const std::pair arrow =
          ranks ? std::pair(r, h) : std::pair(job.domains.host_of(r), job.domains.host_of(h));
      if (arrow.first != arrow.second) out.push_back(arrow);
    }
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

}  // namespace

bool ring_has_ranks(const MeshDescription& job) { return job.domains.world_size() <= kMostRanks; }

double draw_ring(Svg& svg, const MeshDescription& job, std::string_view suffix, double left,
                 double top, double width) {
  const int nodes = ring_has_ranks(job) ? job.domains.world_size() : job.domains.hosts();
  if (nodes < 2 || nodes > kMostHosts) {
    svg.text(left, top + 14, 13,
             nodes < 2 ? "all on one host"
                       : fmt::format("{} hosts are too many to draw: see the cells above", nodes),
             Anchor::kStart, kQuiet);
    return top + 34;
  }
  const Ring ring(job);
  const auto name_of = [&](int host) {
    const std::string& name = job.domains.host(host).name;
    return name.substr(0, name.size() - suffix.size());
  };
  const double radius = std::min(nodes <= 16 ? 130.0 : nodes <= 64 ? 210.0 : 260.0, width / 2 - 70);
  const double cx = left + width / 2;
  const double cy = top + radius + 60;
  const auto hue = [&](int host, double light) {
    return color(205 + 360.0 * host / job.domains.hosts(), 0.5, light);
  };
  const double node_radius = std::min(13.0, 0.84 * std::numbers::pi * radius / nodes);
  const double inner = radius - node_radius - 2;
  const auto arrows = arrows_of(job, ring.ranks);
  for (const auto& [from, to] : arrows) {
    const double a = ring.angle_of(from);
    const double b = ring.angle_of(to);
    // The middle of the chord, pulled to the centre (less so for neighbours), and aside of the way
    // back.
    const double mx = (std::cos(a) + std::cos(b)) / 2;
    const double my = (std::sin(a) + std::sin(b)) / 2;
    const double pull = 0.3 + 0.5 * std::hypot(mx, my);
    const double aside = 0.16;
    svg.arrow(cx + std::cos(a) * inner, cy + std::sin(a) * inner, cx + std::cos(b) * inner,
              cy + std::sin(b) * inner,
              cx + inner * (mx * pull - (std::sin(b) - std::sin(a)) * aside),
              cy + inner * (my * pull + (std::cos(b) - std::cos(a)) * aside),
              hue(ring.ranks ? job.domains.host_of(from) : from, 0.48),
              arrows.size() > 80 ? 0.8 : 1.4, arrows.size() > 300 ? 0.45 : 0.85);
  }
  const bool outside = node_radius < 9;
  for (std::size_t p = 0; p < ring.node.size(); ++p) {
    const double a = ring.angle(static_cast<double>(p));
    svg.circle(cx + std::cos(a) * radius, cy + std::sin(a) * radius, node_radius,
               hue(ring.home[p], 0.88), hue(ring.home[p], 0.48));
    const std::string label = ring.ranks ? std::to_string(ring.node[p]) : name_of(ring.node[p]);
    if (ring.ranks) {
      const double at = outside ? radius + node_radius + 10 : radius;
      const double size = fitting_size(label, outside ? 8.5 : 11, 5, 2 * node_radius + 8);
      svg.text(cx + std::cos(a) * at, cy + std::sin(a) * at + size * 0.36, size,
               fitted(label, size, 2 * node_radius + 8), Anchor::kMiddle, "#222222");
    } else if (outside) {
      const double size = fitting_size(label, 8.5, 4, 60);
      svg.spoke(cx, cy, radius + node_radius + 5, a, size, fitted(label, size, 60), "#222222");
    } else {
      beside(svg, cx, cy, radius + node_radius, width / 2, a, label, "#222222");
    }
  }
  if (!ring.ranks) return cy + radius + 76;
  const double arc = radius + (outside ? 30 : node_radius + 9);
  for (std::size_t from = 0; from < ring.home.size();) {
    std::size_t to = from;
    while (to < ring.home.size() && ring.home[to] == ring.home[from]) ++to;
    const double a = ring.angle(static_cast<double>(from) - 0.35);
    const double b = ring.angle(static_cast<double>(to) - 0.65);
    constexpr int kSteps = 24;
    for (int s = 0; s < kSteps; ++s) {
      const double p = a + (b - a) * s / kSteps;
      const double q = a + (b - a) * (s + 1) / kSteps;
      svg.line(cx + std::cos(p) * arc, cy + std::sin(p) * arc, cx + std::cos(q) * arc,
               cy + std::sin(q) * arc, "#98a2b3", 2);
    }
    // Host names while they have room: one rank each and many hosts, then the cells above tell.
    const double middle = (a + b) / 2;
    if (job.domains.hosts() <= 32) {
      beside(svg, cx, cy, arc, width / 2, middle, name_of(ring.home[from]), kQuiet);
    }
    from = to;
  }
  return cy + radius + 62;
}

}  // namespace meshstage::tools
