#include "tools/mesh/svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace meshstage::tools {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

}  // namespace

std::string color(double hue, double saturation, double lightness) {
  const double chroma = (1 - std::fabs(2 * lightness - 1)) * saturation;
  const double h = std::fmod(hue, 360) / 60;
  const double x = chroma * (1 - std::fabs(std::fmod(h, 2) - 1));
  const double m = lightness - chroma / 2;
  const double table[6][3] = {{chroma, x, 0}, {x, chroma, 0}, {0, chroma, x},
                              {0, x, chroma}, {x, 0, chroma}, {chroma, 0, x}};
  const auto& rgb = table[std::clamp(static_cast<int>(h), 0, 5)];
  const auto byte = [&](double v) { return static_cast<int>(std::lround((v + m) * 255)); };
  return fmt::format("#{:02x}{:02x}{:02x}", byte(rgb[0]), byte(rgb[1]), byte(rgb[2]));
}

double text_width(std::string_view text, double size) {
  // Bytes that continue a character have no width of their own.
  const auto characters =
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
  return static_cast<double>(characters) * size * 0.61;
}

std::string fitted(std::string_view text, double size, double width) {
  if (text_width(text, size) <= width) return std::string(text);
  std::string out(text);
  while (!out.empty() && text_width(out, size) + size * 0.61 > width) {
    while (!out.empty() && (out.back() & 0xc0) == 0x80) out.pop_back();
    if (!out.empty()) out.pop_back();
  }
  return out + "…";
}

double fitting_size(std::string_view text, double most, double least, double width) {
  return std::clamp(0.999 * width / std::max(text_width(text, 1), 1e-6), least, most);
}

void Svg::rect(const Box& box, std::string_view fill, std::string_view stroke, double radius,
               double stroke_width) {
  body_ += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"{:.1f}\" "
      "fill=\"{}\" stroke=\"{}\" stroke-width=\"{:.1f}\"/>\n",
      box.x, box.y, box.width, box.height, radius, fill, stroke, stroke_width);
}

void Svg::text(double x, double y, double size, std::string_view words, Anchor anchor,
               std::string_view fill, bool bold) {
  constexpr const char* kAnchors[] = {"start", "middle", "end"};
  body_ += fmt::format(
      "<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"{:.1f}\" text-anchor=\"{}\" fill=\"{}\"{}>{}"
      "</text>\n",
      x, y, size, kAnchors[static_cast<int>(anchor)], fill, bold ? " font-weight=\"bold\"" : "",
      escaped(words));
}

void Svg::spoke(double cx, double cy, double radius, double angle, double size,
                std::string_view words, std::string_view fill) {
  const bool left = std::cos(angle) < 0;
  const double degrees = angle * 180 / std::numbers::pi + (left ? 180 : 0);
  body_ += fmt::format(
      "<text transform=\"translate({:.1f} {:.1f}) rotate({:.1f})\" y=\"{:.1f}\" "
      "font-size=\"{:.1f}\" "
      "text-anchor=\"{}\" fill=\"{}\">{}</text>\n",
      cx + std::cos(angle) * radius, cy + std::sin(angle) * radius, degrees, size * 0.36, size,
      left ? "end" : "start", fill, escaped(words));
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view stroke, double width) {
  body_ += fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
      "stroke-width=\"{:.1f}\"/>\n",
      x1, y1, x2, y2, stroke, width);
}

void Svg::circle(double x, double y, double radius, std::string_view fill,
                 std::string_view stroke) {
  body_ +=
      fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\" fill=\"{}\" stroke=\"{}\"/>\n",
                  x, y, radius, fill, stroke);
}

void Svg::arrow(double x1, double y1, double x2, double y2, double cx, double cy,
                std::string_view stroke, double width, double opacity) {
  // The head lies along the curve's last direction.
  const double dx = x2 - cx;
  const double dy = y2 - cy;
  const double length = std::max(std::hypot(dx, dy), 1e-6);
  const double ux = dx / length;
  const double uy = dy / length;
  const double head = 3.5 + 2.5 * width;
  const double bx = x2 - ux * head;
  const double by = y2 - uy * head;
  const double half = head * 0.42;
  body_ += fmt::format(
      "<path d=\"M{:.1f} {:.1f}Q{:.1f} {:.1f} {:.1f} {:.1f}\" fill=\"none\" stroke=\"{}\" "
      "stroke-width=\"{:.1f}\" opacity=\"{:.2f}\"/>"
      "<path d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}L{:.1f} {:.1f}Z\" fill=\"{}\" opacity=\"{:.2f}\"/>\n",
      x1, y1, cx, cy, bx, by, stroke, width, opacity, x2, y2, bx - uy * half, by + ux * half,
      bx + uy * half, by - ux * half, stroke, opacity);
}

std::string Svg::document(double width, double height) const {
  return fmt::format(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
             "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"DejaVu Sans, Verdana, Helvetica, "
             "sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
             width, height) +
         body_ + "</svg>\n";
}

}  // namespace meshstage::tools
