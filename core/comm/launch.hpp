#pragma once
#include <cstdint>
#include <string>

#include <meshstage/core/error/export.hpp>

/// Which start of a job owns it: pure, so that the explorer in tests/protocol goes through it.
///
/// A *launch* is one start of all ranks. It owns the job from the moment at which one of its ranks
/// creates the claim of the next generation in the Store: one creation, of which the Store lets one
/// win. Nobody touches a vault or a file before. Generations are claimed by launches, so a newer
/// launch's claim ends an older one's: its root sees the claim before it decides anything.
namespace meshstage::launch {

/// What the Store says of the newest claim.
struct View {
  /// How far its generation is.
  enum class Outcome : std::uint8_t { kForming, kFormed, kAbandoned };
  /// What was seen of its ranks, by values that changed while this process watched, never by a
  /// clock alone.
  enum class Signs : std::uint8_t {
    kUnknown,  ///< Nothing that decides; watch on.
    /// Formed: every rank renewed its sign of life twice. Else: who claimed or joined it runs.
    kAlive,
    /// Formed, and a rank of it is gone, while another one lives, which comes back for the next.
    kBroken,
    /// All that were in it are gone, or one was silent for as long as patience lasts.
    kLost,
  };
  bool exists = false;  ///< False: nobody ever claimed a generation of this job.
  std::string launch;   ///< Whose claim it is.
  int world_size = 0;
  std::string agreement;
  /// The launch had formed a generation before this claim: its lost seats may be filled by others.
  bool worked = false;
  Outcome outcome = Outcome::kForming;
  Signs signs = Signs::kUnknown;
  /// Nobody is this rank of it, or was in the launch's generation before; or who was is known to be
  /// gone, or silent.
  bool seat_free = true;
};

/// A process that wants to be a rank of the job.
struct Comer {
  /// As its launcher calls this start; empty: nobody said (ranks that are started by hand), so it
  /// belongs to whatever launch fits.
  std::string launch;
  int world_size = 1;
  std::string agreement;
  /// It has been in a generation of `launch`, and comes back because that ended.
  bool member = false;
  /// Take the job from another launch that is alive, too; nothing beside the comer's own launch.
  bool take_over = false;
};

enum class Admission : std::uint8_t {
  kJoin,          ///< Join the newest claim's generation.
  kClaim,         ///< Claim the next generation for the newest claim's launch.
  kTake,          ///< Claim the next generation for the comer's own launch: it owns the job then.
  kWatch,         ///< Look again, until the deadline.
  kRefused,       ///< The job is healthy. Nothing was touched.
  kOtherWorld,    ///< Ranks of the same start were told another world size,
  kOtherOptions,  ///< ... or another agreement.
  kFenced,        ///< A newer launch owns the job.
};

[[nodiscard]] MESHSTAGE_API Admission admit(const View& job, const Comer& comer);

/// Whether admit() says something else for other signs: else nobody need look for them, which asks
/// every rank of the job.
[[nodiscard]] MESHSTAGE_API bool signs_matter(const View& job, const Comer& comer);

}  // namespace meshstage::launch
