#include <meshstage/core/comm/launch.hpp>

namespace meshstage::launch {

namespace {

using Outcome = View::Outcome;
using Signs = View::Signs;

bool fits(const View& job, const Comer& comer) {
  return job.world_size == comer.world_size && job.agreement == comer.agreement;
}

/// The comer belongs to the launch that owns the job, as far as it can tell.
bool is_of(const View& job, const Comer& comer) {
  return comer.launch.empty() || comer.launch == job.launch;
}

/// The comer takes the job by force: from another launch, as far as it can tell.
bool forces(const View& job, const Comer& comer) {
  return comer.take_over && (comer.launch.empty() || comer.launch != job.launch);
}

Admission of_formed(const View& job, const Comer& comer) {
  // A seat of a group that has formed is free where the group is broken.
  if (is_of(job, comer) && fits(job, comer) && job.seat_free) return Admission::kClaim;
  if (forces(job, comer)) return Admission::kTake;
  switch (job.signs) {
    case Signs::kAlive:
      return Admission::kRefused;
    case Signs::kLost:
      return is_of(job, comer) && fits(job, comer) ? Admission::kWatch : Admission::kTake;
    // The ranks that live come back, and then a lost seat can be filled. Whoever took the job now
    // might be ended by its launcher, because another rank of its start was refused just before.
    case Signs::kBroken:
    case Signs::kUnknown:
      break;
  }
  return Admission::kWatch;
}

Admission of_unformed(const View& job, const Comer& comer) {
  const bool forming = job.outcome == Outcome::kForming;
  const Admission along = forming ? Admission::kJoin : Admission::kClaim;
  if (is_of(job, comer) && fits(job, comer)) return job.seat_free ? along : Admission::kWatch;
  // A launch whose ranks all ended before they were a group leaves nothing to wait for.
  if (job.signs == Signs::kLost) return Admission::kTake;
  if (is_of(job, comer)) {
    if (job.signs != Signs::kAlive) return Admission::kWatch;
    return job.world_size != comer.world_size ? Admission::kOtherWorld : Admission::kOtherOptions;
  }
  if (forces(job, comer)) return Admission::kTake;
  // Another launch's rank is welcome where it fills the lost seat of a group that has worked.
  // Before that it waits: of two launches that start at once one forms, the other is refused then.
  if (job.worked && job.seat_free && fits(job, comer)) return along;
  return Admission::kWatch;
}

}  // namespace

Admission admit(const View& job, const Comer& comer) {
  if (!job.exists) return Admission::kTake;
  if (comer.member) {
    if (job.launch != comer.launch || !fits(job, comer)) return Admission::kFenced;
    return job.outcome == Outcome::kForming ? Admission::kJoin : Admission::kClaim;
  }
  return job.outcome == Outcome::kFormed ? of_formed(job, comer) : of_unformed(job, comer);
}

bool signs_matter(const View& job, const Comer& comer) {
  View seen = job;
  seen.signs = Signs::kUnknown;
  const Admission unknown = admit(seen, comer);
  for (const Signs signs : {Signs::kAlive, Signs::kBroken, Signs::kLost}) {
    seen.signs = signs;
    if (admit(seen, comer) != unknown) return true;
  }
  return false;
}

}  // namespace meshstage::launch
