#include <meshstage/core/points/points.hpp>

namespace meshstage {

const std::array<Point, kPointCount>& all_points() noexcept {
  static constexpr auto kAll = [] {
    std::array<Point, kPointCount> all{};
    for (std::size_t i = 0; i < kPointCount; ++i) all[i] = static_cast<Point>(i);
    return all;
  }();
  return kAll;
}

std::string_view to_string(Point point) noexcept {
  switch (point) {
    case Point::kFormed:
      return "formed";
    case Point::kClaimed:
      return "claimed";
    case Point::kChosen:
      return "chosen";
    case Point::kChoiceLearned:
      return "choice-learned";
    case Point::kFetchStarted:
      return "fetch-started";
    case Point::kFetched:
      return "fetched";
    case Point::kReadyToRestore:
      return "ready-to-restore";
    case Point::kEstablished:
      return "established";
    case Point::kRestoring:
      return "restoring";
    case Point::kOwnWriting:
      return "own-writing";
    case Point::kOffered:
      return "offered";
    case Point::kReplicaWriting:
      return "replica-writing";
    case Point::kChunkSent:
      return "chunk-sent";
    case Point::kChunkReceived:
      return "chunk-received";
    case Point::kOwnSealed:
      return "own-sealed";
    case Point::kReplicaSealed:
      return "replica-sealed";
    case Point::kVoted:
      return "voted";
    case Point::kFailed:
      return "failed";
    case Point::kFirstNoted:
      return "first-noted";
    case Point::kDecided:
      return "decided";
    case Point::kComplete:
      return "complete";
    case Point::kPersisted:
      return "persisted";
    case Point::kPruned:
      return "pruned";
    case Point::kFinishing:
      return "finishing";
  }
  return "unknown";
}

std::optional<Point> parse_point(std::string_view name) noexcept {
  for (const Point point : all_points()) {
    if (to_string(point) == name) return point;
  }
  return std::nullopt;
}

}  // namespace meshstage
