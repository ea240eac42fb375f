#pragma once
#include <cstdint>
#include <string>

#include <meshstage/core/error/export.hpp>

/// Which start of a job owns it: pure, so that the explorer in tests/protocol goes through it.
///
/// A *launch* is one start of all ranks. It owns the job once one of its ranks has created the
/// claim of the next generation in the Store, where the first creation wins. No rank touches a
/// vault or a file before. A newer launch's claim ends an older launch: the older one's root sees
/// the claim before it decides anything more.
namespace meshstage::launch {

/// The newest claim, as the Store has it, and its ranks, as this process saw them.
struct View {
  /// The state of its generation.
  enum class Outcome : std::uint8_t { kForming, kFormed, kAbandoned };
  /// What this process saw of the ranks while it watched: values that changed, never a clock alone.
  enum class Signs : std::uint8_t {
    kUnknown,  ///< Nothing that decides; watch on.
    /// Formed: every rank's trainer showed a sign of life twice. Else: a process that joined it
    /// answers.
    kAlive,
    /// Formed, one rank is gone and another one lives, which comes back for the next generation.
    kBroken,
    /// Formed: all its ranks are gone, or one was silent for `patience`. Else: all are gone or
    /// silent.
    kLost,
  };
  bool exists = false;  ///< False: nobody ever claimed a generation of this job.
  std::string launch;   ///< The launch that claimed it.
  int world_size = 0;
  std::string agreement;
  /// The launch formed a generation before this claim, so other launches may fill its lost seats.
  bool worked = false;
  Outcome outcome = Outcome::kForming;
  Signs signs = Signs::kUnknown;
  /// No process has this rank's place in it or in the launch's generation before, or the process
  /// that has it is gone or silent.
  bool seat_free = true;
};

/// A process that wants to be a rank of the job.
struct Comer {
  /// The launcher's name for this start. Empty (ranks that are started by hand): it belongs to any
  /// launch that fits.
  std::string launch;
  int world_size = 1;
  std::string agreement;
  /// It was in a generation of `launch`, and comes back because that generation ended.
  bool member = false;
  /// Take the job even from another launch that is alive; has no effect on the comer's own launch.
  bool take_over = false;
};

enum class Admission : std::uint8_t {
  kJoin,          ///< Join the newest claim's generation.
  kClaim,         ///< Claim the next generation for the newest claim's launch.
  kTake,          ///< Claim the next generation for the comer's own launch: it owns the job then.
  kWatch,         ///< Look again, until the deadline.
  kRefused,       ///< The job is healthy. Nothing was touched.
  kOtherWorld,    ///< Ranks of the same start have another world size,
  kOtherOptions,  ///< ... or another agreement.
  kFenced,        ///< A newer launch owns the job.
};

[[nodiscard]] MESHSTAGE_API Admission admit(const View& job, const Comer& comer);

/// True if the result of admit() depends on the signs. If not, the caller need not gather them,
/// which asks every rank of the job.
[[nodiscard]] MESHSTAGE_API bool signs_matter(const View& job, const Comer& comer);

}  // namespace meshstage::launch
