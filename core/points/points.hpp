#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// The named points of the protocol: one just after each change of persistent or agreed state, in
/// the order of a rank's life. CheckpointerOptions::observer is called at each; the drill and the
/// tests kill ranks there (`--kill 2@87:own-sealed`).
///
/// transition() (core/protocol) announces all points but the chunk points, as `Reached`, right
/// behind the action that makes the change; Engine::link_to() (core/replicate) announces the chunk
/// points.
enum class Point : std::uint8_t {
  // Recovery
  kFormed,          ///< A generation was formed; nothing was read yet.
  kClaimed,         ///< This rank verified its slots and sent its claims.
  kChosen,          ///< The root chose the step and the transfers; no other rank knows.
  kChoiceLearned,   ///< This rank knows the choice.
  kFetchStarted,    ///< A slot is WRITING for a fetched image.
  kFetched,         ///< That slot is SEALED.
  kReadyToRestore,  ///< This rank has all its images and agreed to the restoration.
  kEstablished,     ///< The root knows that all agreed; no other rank does.
  kRestoring,  ///< This rank knows that all agreed; it is about to write its trainer's tensors.
  // A round
  kOwnWriting,      ///< The own slot is WRITING.
  kOffered,         ///< The step was offered to every holder.
  kReplicaWriting,  ///< A ward's slot is WRITING.
  kChunkSent,       ///< One chunk of the image left (Engine::link_to() announces it).
  kChunkReceived,   ///< One chunk of a ward's image arrived (Engine::link_to() announces it).
  kOwnSealed,       ///< The own slot is SEALED.
  kReplicaSealed,   ///< A ward's slot is SEALED.
  kVoted,           ///< Own image and all replicas are sealed: the promise holds from here.
  kFailed,          ///< This rank knows that the step failed.
  kFirstNoted,      ///< The Store notes that a step was complete (root only).
  kDecided,         ///< The root knows that the step is complete; no other rank does.
  kComplete,        ///< This rank knows that the step is complete.
  // Persistence and the end
  kPersisted,  ///< This rank's own and held images of a step are files.
  kPruned,     ///< Older files were removed.
  kFinishing,  ///< Every rank called finish(); this rank is about to remove its vault.
};

inline constexpr std::size_t kPointCount = static_cast<std::size_t>(Point::kFinishing) + 1;

/// Every point, in the order of the enumeration.
MESHSTAGE_API const std::array<Point, kPointCount>& all_points() noexcept;

/// "own-sealed", "choice-learned", ...: stable names, for options and output.
MESHSTAGE_API std::string_view to_string(Point point) noexcept;

/// The point with that name; nothing if there is none.
MESHSTAGE_API std::optional<Point> parse_point(std::string_view name) noexcept;

}  // namespace meshstage
