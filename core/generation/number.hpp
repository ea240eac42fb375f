#pragma once
#include <cstdint>
#include <string>

#include <meshstage/core/error/export.hpp>

/// The number of a generation, from its high bits to its low ones:
/// - 30 bits: seconds since 2020, so that a later run is the newer one, and for people
/// - 14 bits: random, because two runs may begin in one second
/// - 11 bits: the generations of that run, counted from 1; a run that has more goes on counting in
///   the random bits
/// 55 bits in all, because a vault keeps them beside a slot's state in one word. A *run* of a job
/// begins where its first rank finds a Store that knows nothing of the job. Two such runs have no
/// generation in common, so their images never combine. Safety needs no clock: a run's number is
/// above all that its ranks have seen. Unequal clocks can only change the order of two runs that do
/// not know each other.
namespace meshstage {

inline constexpr unsigned kGenerationBits = 11;
/// Every generation's number is below this one, which stands for the year 2054.
inline constexpr std::uint64_t kLastGeneration = ((std::uint64_t{1} << 30U) - 1) << 25U;

/// The number of a generation within its run; messages show it. A number from a release without
/// runs is returned unchanged.
[[nodiscard]] constexpr std::uint64_t generation_in_run(std::uint64_t generation) noexcept {
  return generation & ((std::uint64_t{1} << kGenerationBits) - 1);
}

/// "generation 3", as generation_in_run().
[[nodiscard]] MESHSTAGE_API std::string generation_text(std::uint64_t generation);

/// The number below all generations of a new run, and above `above`.
[[nodiscard]] MESHSTAGE_API std::uint64_t draw_run(std::uint64_t above);

/// The run of a generation: the same for all generations of one run, larger for a later one.
[[nodiscard]] constexpr std::uint64_t run_of(std::uint64_t generation) noexcept {
  return generation >> kGenerationBits;
}
/// Whether two generations belong to one run.
[[nodiscard]] constexpr bool same_run(std::uint64_t a, std::uint64_t b) noexcept {
  return run_of(a) == run_of(b);
}

/// "the run begun at 2026-11-27 10:48:58 UTC", by the clock of the rank that drew it; "a run of an
/// older release" for a number without a run.
[[nodiscard]] MESHSTAGE_API std::string run_text(std::uint64_t generation);

/// "2026-11-27 10:48:58 UTC".
[[nodiscard]] MESHSTAGE_API std::string utc_text(std::int64_t seconds_since_1970);

}  // namespace meshstage
