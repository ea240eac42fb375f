#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/comm/job_entries_impl.hpp>
#include <meshstage/core/comm/launch.hpp>
#include <meshstage/core/comm/store.hpp>

namespace meshstage::detail {

/// How often a rank looks for questions of newcomers, and a newcomer for answers: all ranks of a
/// job together call the Store at most some hundred times a second for it.
[[nodiscard]] std::chrono::milliseconds pause_between_signs(std::chrono::milliseconds patience,
                                                            int world_size);

/// What a newcomer sees of the ranks of the newest generations while it watches: whether their
/// processes are gone, and how often they answered it. A rank is alive by the values that it
/// changed, never by a clock. Not thread-safe.
class Watch {
 public:
  /// `patience`: a rank that answers nothing for so long is silent.
  Watch(std::shared_ptr<Store> store, std::string job, int rank,
        std::chrono::milliseconds patience);

  /// Of the ranks of a generation. Asks them, which takes two calls to the Store for each rank.
  [[nodiscard]] launch::View::Signs signs(std::uint64_t generation, const Claim& claim, bool formed,
                                          Deadline deadline);
  /// The process that joined `generation` as this newcomer's rank is gone, was named as the one
  /// that died, or is silent. `formed`: the newest generation is formed.
  [[nodiscard]] bool seat_is_free(std::uint64_t generation, const Place& holder, const Claim& claim,
                                  bool formed, Deadline deadline);

  /// Asks again, and waits until one of `keys` is there, or for a moment.
  void wait(const std::vector<std::string>& keys, const Claim& claim, Deadline deadline);

  /// Of the last signs(), for people: "ranks 0, 1 answered, but their trainers did nothing".
  [[nodiscard]] const std::string& text() const noexcept { return text_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Seen {
    std::string answer;       // the last
    int answers = 0;          // since this watches
    int signs = 0;            // answers with which the trainer's number had changed
    Clock::time_point since;  // of the last answer, else of the first look
  };
  Seen& look(std::uint64_t generation, int rank, Deadline deadline);
  [[nodiscard]] std::chrono::milliseconds pause(const Claim& claim) const;

  const std::shared_ptr<Store> store_;
  const std::string job_;
  const int rank_;
  const std::chrono::milliseconds patience_;
  const std::string token_;  // tells this newcomer's questions from others'
  std::uint64_t questions_ = 0;
  std::vector<std::uint64_t> asked_;  // the generations that wait() asks
  std::map<std::pair<std::uint64_t, int>, Seen> seen_;
  std::string text_;
};

}  // namespace meshstage::detail
