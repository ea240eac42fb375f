// The LibTorch example is killed at every named point of the protocol, and its replacement again.
// In parts, because LibTorch takes its time to load, and each part loads it some hundred times.
#include <algorithm>
#include <optional>
#include <span>

#include "tests/examples/killed_runs.hpp"

namespace {

using meshstage::Point;

/// The points from `first` on, up to the one before `end`; without `end` all others.
void killed_from(Point first, std::optional<Point> end = std::nullopt) {
  const std::span<const Point> all = meshstage::all_points();
  const auto begin = std::ranges::find(all, first);
  examples::killed_at("torch", {begin, end ? std::ranges::find(all, *end) : all.end()});
}

}  // namespace

TEST_CASE("a LibTorch trainer survives two deaths at every point of a recovery's choice") {
  killed_from(Point::kFormed, Point::kFetchStarted);
}

TEST_CASE("a LibTorch trainer survives two deaths at every point of a recovery's images") {
  killed_from(Point::kFetchStarted, Point::kOwnWriting);
}

TEST_CASE("a LibTorch trainer survives two deaths at every point of staging") {
  killed_from(Point::kOwnWriting, Point::kOwnSealed);
}

TEST_CASE("a LibTorch trainer survives two deaths at every point from a step's seal to its file") {
  killed_from(Point::kOwnSealed);
}
