#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/generation.hpp>
#include <meshstage/core/comm/store.hpp>

/// Private to comm: how a job's entries in the Store are called (membership.hpp lists them), and
/// what their texts are. Numbers in names have twenty digits, so that they sort.
namespace meshstage::detail {

/// How an entry gen/<n>/outcome reads, and how one begins.
constexpr char kFormed[] = "formed";
constexpr std::string_view kAbandoned = "abandoned: ";
/// How an entry gen/<n>/end reads.
constexpr char kFinished[] = "finished";
constexpr char kSuperseded[] = "superseded";

/// For a name that nobody else draws.
[[nodiscard]] std::uint64_t random_number();

/// What an entry claim/<n> says. A launch's name has no spaces.
struct Claim {
  int world = 0;
  std::string launch;
  std::uint64_t last = 0;  ///< The generation that this launch formed last; 0: none yet.
  std::string agreement;

  [[nodiscard]] std::string text() const;
  [[nodiscard]] static Claim parse(const std::string& text);
};

/// "the start \"torchrun-7\"", or "another start" where its launcher gave no name.
[[nodiscard]] std::string name_of_start(const Claim& claim);

/// What an entry gen/<n>/place/<rank> says: the process that joined n as that rank.
struct Place {
  std::uint64_t token = 0;  ///< Drawn by the process, which may have a place in many generations.
  std::uint64_t boot = 0, pid_namespace = 0;  ///< As ProcessAddress.
  std::int64_t pid = 0;
  std::uint64_t start_time = 0;

  [[nodiscard]] std::string text() const;
  [[nodiscard]] static Place parse(const std::string& text);
};

/// The number that `text` begins with; 0 if none.
[[nodiscard]] std::uint64_t leading_number(std::string_view text);

/// Throws InvalidState: the entry `key` is none of ours.
[[noreturn]] void throw_strange(const std::string& key);

/// gen/<n>/`what`
[[nodiscard]] std::string generation_key(const std::string& job, std::uint64_t generation,
                                         const std::string& what);
[[nodiscard]] std::string place_key(const std::string& job, std::uint64_t generation, int rank);
[[nodiscard]] std::string alive_key(const std::string& job, std::uint64_t generation, int rank);
[[nodiscard]] std::string left_key(const std::string& job, std::uint64_t generation, int rank);
[[nodiscard]] std::string end_key(const std::string& job, std::uint64_t generation);
/// claim/<n>
[[nodiscard]] std::string claim_key(const std::string& job, std::uint64_t generation);

/// 0 if nobody ever claimed a generation. Throws InvalidState on an entry that no rank has written.
[[nodiscard]] std::uint64_t newest_claim(Store& store, const std::string& job, Deadline deadline);
/// 0 if no process ever registered as that rank.
[[nodiscard]] std::uint64_t newest_incarnation(Store& store, const std::string& job, int rank,
                                               Deadline deadline);
/// Registers a process as the newest of its rank, and removes the entries of older ones.
[[nodiscard]] std::uint64_t register_incarnation(Store& store, const std::string& job, int rank,
                                                 Deadline deadline);

/// Writes who died. The first cause stays; returns the one that is there.
DeathCause note_cause(Store& store, const std::string& job, std::uint64_t generation,
                      const DeathCause& cause, Deadline deadline);

}  // namespace meshstage::detail
