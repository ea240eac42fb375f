#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace meshstage::tools {

/// "#rrggbb" of a hue in degrees, saturation and lightness 0..1.
[[nodiscard]] std::string color(double hue, double saturation, double lightness);
/// Width of text in pixels, about (no font is asked).
[[nodiscard]] double text_width(std::string_view text, double size);
/// Cut with "…" so that it fits.
[[nodiscard]] std::string fitted(std::string_view text, double size, double width);

/// The size, `most` or smaller, at which text fits; not below `least`. Text is made smaller before
/// it is cut: what tells names apart is often at their end.
[[nodiscard]] double fitting_size(std::string_view text, double most, double least, double width);

/// An SVG document, written as it is drawn; pixels, y downwards.
class Svg {
 public:
  struct Box {
    double x, y, width, height;
  };
  void rect(const Box& box, std::string_view fill, std::string_view stroke = "none",
            double radius = 0, double stroke_width = 1);
  enum class Anchor : std::uint8_t { kStart, kMiddle, kEnd };
  void text(double x, double y, double size, std::string_view words, Anchor anchor = Anchor::kStart,
            std::string_view fill = "#222222", bool bold = false);
  /// Text along the ray from (cx, cy) at `angle`, beginning at `radius`, never upside down.
  void spoke(double cx, double cy, double radius, double angle, double size, std::string_view words,
             std::string_view fill);
  void line(double x1, double y1, double x2, double y2, std::string_view stroke, double width = 1);
  void circle(double x, double y, double radius, std::string_view fill, std::string_view stroke);
  /// A curve from one point to another that bends towards (cx, cy), with an arrow head at its end.
  void arrow(double x1, double y1, double x2, double y2, double cx, double cy,
             std::string_view stroke, double width = 1.2, double opacity = 1);
  /// The whole document, with a white ground.
  [[nodiscard]] std::string document(double width, double height) const;

 private:
  std::string body_;
};

}  // namespace meshstage::tools
