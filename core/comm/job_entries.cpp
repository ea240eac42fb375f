#include <charconv>
#include <random>
#include <sstream>
#include <vector>

#include <meshstage/core/comm/job_entries_impl.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::detail {

namespace {

std::string twenty_digits(std::uint64_t number) {
  constexpr std::size_t kDigits = 20;
  const std::string digits = std::to_string(number);
  return std::string(kDigits - digits.size(), '0') + digits;
}

std::string claims_of(const std::string& job) { return job + "/claim/"; }
std::string incarnations_of(const std::string& job, int rank) {
  return job + "/incarnation/" + std::to_string(rank) + "/";
}

}  // namespace

void throw_strange(const std::string& key) {
  throw InvalidState("the store has an entry \"" + key +
                     "\", which no rank has written; remove it");
}

std::uint64_t random_number() {
  std::random_device random;
  return std::uint64_t{random()} << 32 | random();
}

std::string Claim::text() const {
  return std::to_string(world) + " " + (launch.empty() ? "?" : launch) + " " +
         std::to_string(last) + (agreement.empty() ? "" : " " + agreement);
}

Claim Claim::parse(const std::string& text) {
  Claim claim;
  std::istringstream in(text);
  in >> claim.world >> claim.launch >> claim.last;
  if (in.get() == ' ') std::getline(in, claim.agreement);
  return claim;
}

std::string name_of_start(const Claim& claim) {
  if (claim.launch.empty() || claim.launch.starts_with('?')) return "another start";
  return "the start \"" + claim.launch + "\"";
}

std::string Place::text() const {
  std::ostringstream out;
  out << token << ' ' << boot << ' ' << pid_namespace << ' ' << pid << ' ' << start_time;
  return out.str();
}

Place Place::parse(const std::string& text) {
  Place place;
  std::istringstream in(text);
  in >> place.token >> place.boot >> place.pid_namespace >> place.pid >> place.start_time;
  return place;
}

std::uint64_t leading_number(std::string_view text) {
  std::uint64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

std::string generation_key(const std::string& job, std::uint64_t generation,
                           const std::string& what) {
  return job + "/gen/" + twenty_digits(generation) + "/" + what;
}

std::string place_key(const std::string& job, std::uint64_t generation, int rank) {
  return generation_key(job, generation, "place/" + std::to_string(rank));
}

std::string alive_key(const std::string& job, std::uint64_t generation, int rank) {
  return generation_key(job, generation, "alive/" + std::to_string(rank));
}

std::string left_key(const std::string& job, std::uint64_t generation, int rank) {
  return generation_key(job, generation, "left/" + std::to_string(rank));
}

std::string end_key(const std::string& job, std::uint64_t generation) {
  return generation_key(job, generation, "end");
}

std::string claim_key(const std::string& job, std::uint64_t generation) {
  return claims_of(job) + twenty_digits(generation);
}

std::uint64_t newest_claim(Store& store, const std::string& job, Deadline deadline) {
  const std::string prefix = claims_of(job);
  const auto keys = store.list(prefix, deadline);
  if (keys.empty()) return 0;
  const std::string name = keys.back().substr(prefix.size());
  const std::uint64_t newest = leading_number(name);
  // Also what is no number at all, or is too long for one.
  if (newest == 0 || newest > kLastGeneration || name != twenty_digits(newest)) {
    throw_strange(keys.back());
  }
  return newest;
}

std::uint64_t newest_incarnation(Store& store, const std::string& job, int rank,
                                 Deadline deadline) {
  const std::string prefix = incarnations_of(job, rank);
  const auto all = store.list(prefix, deadline);
  return all.empty() ? 0 : leading_number(all.back().substr(prefix.size()));
}

std::uint64_t register_incarnation(Store& store, const std::string& job, int rank,
                                   Deadline deadline) {
  const std::string token = std::to_string(random_number());
  const std::string prefix = incarnations_of(job, rank);
  std::vector<std::string> older;
  std::uint64_t number = 0;
  do {
    older = store.list(prefix, deadline);
    number = older.empty() ? 1 : leading_number(older.back().substr(prefix.size())) + 1;
    if (number > kLastGeneration) throw_strange(older.back());
  } while (store.compare_and_create(prefix + twenty_digits(number), token, deadline) != token);
  for (const auto& key : older) store.remove(key, deadline);
  return number;
}

DeathCause note_cause(Store& store, const std::string& job, std::uint64_t generation,
                      const DeathCause& cause, Deadline deadline) {
  return decode_cause(
      store.compare_and_create(cause_key(job, generation), encode_cause(cause), deadline));
}

}  // namespace meshstage::detail
