#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include <meshstage/core/comm/launch.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/watch_impl.hpp>

namespace meshstage::detail {

/// One process on its way into the job: what it reads of the newest claim in the Store for
/// launch::admit(), what it waits for, and what it says when it is refused. Not thread-safe.
class Newcomer {
 public:
  explicit Newcomer(const MembershipOptions& options);

  /// What the Store says of generation `number`, whose claim that is. Nothing: it is not yet this
  /// rank's turn to ask all others.
  [[nodiscard]] std::optional<launch::View> look(std::uint64_t number, const Claim& claim,
                                                 const launch::Comer& comer, Deadline deadline);
  /// Nobody is this rank of that generation, or of its launch's before; or who was is gone.
  [[nodiscard]] bool seat_is_free(std::uint64_t number, const Claim& claim, bool formed,
                                  Deadline deadline);
  /// Tells this process's places from others'.
  [[nodiscard]] std::uint64_t token() const noexcept { return token_; }
  /// Waits for a moment, or until something changes that look() reads.
  void wait(std::uint64_t number, const Claim& claim, Deadline deadline);
  /// What wait() waited for last, for an error: ""; or "; generation 7 of ...".
  [[nodiscard]] std::string waited_for() const;

  /// Throws InvalidState, with what a person can do.
  [[noreturn]] void refuse(launch::Admission why, std::uint64_t number, const Claim& claim,
                           Deadline deadline);

 private:
  using Clock = std::chrono::steady_clock;
  [[nodiscard]] Clock::duration watched(std::uint64_t number) const;

  const MembershipOptions& options_;
  const std::uint64_t token_;
  Watch watch_;
  std::map<std::uint64_t, Clock::time_point> first_look_;
  std::string waited_for_;
  bool told_ = false;
};

}  // namespace meshstage::detail
