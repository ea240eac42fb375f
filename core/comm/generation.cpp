#include <utility>

#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/comm/job_entries_impl.hpp>

namespace meshstage {

std::string describe(const DeathCause& cause) {
  if (cause.rank < 0) return cause.reason;
  return "rank " + std::to_string(cause.rank) + " " + cause.reason;
}

std::string cause_key(const std::string& job, std::uint64_t generation) {
  return detail::generation_key(job, generation, "cause");
}

std::string encode_cause(const DeathCause& cause) {
  return std::to_string(cause.rank) + " " + cause.reason;
}

DeathCause decode_cause(const std::string& text) {
  const auto space = text.find(' ');
  DeathCause cause;
  cause.rank = text.starts_with('-') ? -1 : static_cast<int>(detail::leading_number(text));
  if (space != std::string::npos) cause.reason = text.substr(space + 1);
  return cause;
}

std::optional<NewerClaim> look_for_newer(Store& store, const std::string& job,
                                         const Generation& generation, Deadline deadline) {
  store.compare_and_create(detail::claim_key(job, generation.number), generation.claim, deadline);
  NewerClaim newer;
  newer.number = detail::newest_claim(store, job, deadline);
  if (newer.number <= generation.number) return std::nullopt;
  if (const auto text = store.get(detail::claim_key(job, newer.number), deadline)) {
    const auto claim = detail::Claim::parse(*text);
    const bool ours = claim.launch == detail::Claim::parse(generation.claim).launch;
    if (!ours) newer.owner = detail::name_of_start(claim);
  }
  return newer;
}

bool claim_the_end(Store& store, const std::string& job, std::uint64_t generation,
                   Deadline deadline) {
  return store.compare_and_create(detail::end_key(job, generation), detail::kFinished, deadline) ==
         detail::kFinished;
}

void Generation::abort(std::exception_ptr cause) const noexcept {
  if (data) data->abort(cause);
  if (training) training->abort(cause);
  if (device) device->abort(cause);
}

void Generation::close() const noexcept {
  if (links) links->close();
  if (data) data->close();
  if (training) training->close();
  if (device) device->close();
}

}  // namespace meshstage
