#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include <meshstage/core/error/export.hpp>

namespace meshstage::protocol {

/// The named points of the protocol: one just after each change of persistent or agreed state, in
/// the order of a rank's life. An observer given in options hears of each; the drill kills there
/// (`--kill 2@87:own-sealed`), and so do the tests.
///
/// All but the chunk points are announced by transition() itself, as `Reached`, right behind the
/// action that makes the change; the exchange announces the chunk points.
enum class Point : std::uint8_t {
  // Recovery
  kFormed,          ///< A generation was formed; nothing was read yet.
  kClaimed,         ///< This rank verified its slots and said what it has.
  kChosen,          ///< The root chose the step (and what is to be fetched); nobody else knows.
  kChoiceLearned,   ///< This rank knows the choice.
  kFetchStarted,    ///< A slot is WRITING with an image from elsewhere.
  kFetched,         ///< That slot is SEALED.
  kReadyToRestore,  ///< This rank has all it needs and agreed to the restoration.
  kEstablished,     ///< The root knows that all agreed; nobody else does.
  kRestoring,       ///< This rank knows; its trainer's tensors are about to be written.
  // A round
  kOwnWriting,      ///< The own slot is WRITING.
  kOffered,         ///< The step was offered to every holder.
  kReplicaWriting,  ///< A ward's slot is WRITING.
  kChunkSent,       ///< One chunk of the image left (announced by the exchange).
  kChunkReceived,   ///< One chunk of a ward's image arrived (announced by the exchange).
  kOwnSealed,       ///< The own slot is SEALED.
  kReplicaSealed,   ///< A ward's slot is SEALED.
  kVoted,           ///< Own image and all replicas are sealed: the promise holds from here.
  kFailed,          ///< This rank knows that the step failed.
  kFirstNoted,      ///< The Store notes that a step was complete (root only).
  kDecided,         ///< The root knows that the step is complete; nobody else does.
  kComplete,        ///< This rank knows that the step is complete.
  // Persistence and the end
  kPersisted,  ///< This rank's own and held images of a step are files.
  kPruned,     ///< Older files were removed.
  kFinishing,  ///< Everyone called finish(); this rank's vault is about to be removed.
};

inline constexpr std::size_t kPointCount = static_cast<std::size_t>(Point::kFinishing) + 1;

/// Every point, in the order of the enumeration.
MESHSTAGE_API const std::array<Point, kPointCount>& all_points() noexcept;

/// "own-sealed", "choice-learned", ...: stable names, for options and output.
MESHSTAGE_API std::string_view to_string(Point point) noexcept;

/// The point of that name; nothing if there is none.
MESHSTAGE_API std::optional<Point> parse_point(std::string_view name) noexcept;

}  // namespace meshstage::protocol
