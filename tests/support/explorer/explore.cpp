#include "tests/support/explorer/explore.hpp"

#include <algorithm>
#include <chrono>
#include <random>
#include <sstream>
#include <stdexcept>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace meshstage::explorer {

namespace {

/// A set of 128-bit keys, 16 bytes each: linear probing, at most two thirds full.
class KeySet {
 public:
  KeySet() : table_(1U << 16U) {}

  /// False if it was there.
  bool insert(XXH128_hash_t key) {
    if (key.low64 == 0 && key.high64 == 0) key.low64 = 1;
    if (3 * (size_ + 1) > 2 * table_.size()) grow();
    return put(key);
  }
  [[nodiscard]] std::uint64_t size() const { return size_; }

 private:
  bool put(XXH128_hash_t key) {
    const std::size_t mask = table_.size() - 1;
    for (std::size_t i = key.low64 & mask;; i = (i + 1) & mask) {
      XXH128_hash_t& entry = table_[i];
      if (entry.low64 == key.low64 && entry.high64 == key.high64) return false;
      if (entry.low64 != 0 || entry.high64 != 0) continue;
      entry = key;
      ++size_;
      return true;
    }
  }
  void grow() {
    std::vector<XXH128_hash_t> old(table_.size() * 2);
    old.swap(table_);
    size_ = 0;
    for (const XXH128_hash_t& key : old) {
      if (key.low64 != 0 || key.high64 != 0) put(key);
    }
  }
  std::vector<XXH128_hash_t> table_;
  std::uint64_t size_ = 0;
};

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

bool only_faults(const std::vector<Choice>& choices) {
  return std::all_of(choices.begin(), choices.end(), is_fault);
}

XXH128_hash_t key_of(const World& world) {
  const std::string bytes = world.bytes();
  return XXH3_128bits(bytes.data(), bytes.size());
}

}  // namespace

Result explore(const Bounds& bounds, Limits limits) {
  struct Frame {
    World world;
    std::vector<Choice> choices;
    std::size_t next = 0;
  };
  const Stopwatch watch;
  Result result;
  KeySet seen;
  std::vector<Frame> stack;
  const auto enter = [&](World world) {
    auto choices = world.choices();
    if (!limits.safety_only && world.violation().empty() && only_faults(choices)) {
      result.violation = world.stuck();
    }
    stack.push_back({std::move(world), std::move(choices), 0});
    result.depth = std::max<std::uint64_t>(result.depth, stack.size());
  };
  const auto record = [&] {
    for (std::size_t i = 0; i + 1 < stack.size(); ++i) {
      result.trace.push_back(stack[i].choices[stack[i].next - 1]);
    }
  };
  World start(std::make_shared<const Bounds>(bounds));
  seen.insert(key_of(start));
  enter(std::move(start));
  while (!stack.empty() && result.violation.empty()) {
    Frame& top = stack.back();
    if (top.next == top.choices.size()) {
      stack.pop_back();
      continue;
    }
    if (seen.size() >= limits.max_states) {
      result.complete = false;
      break;
    }
    const Choice choice = top.choices[top.next++];
    World world = top.world;
    world.step(choice);
    ++result.edges;
    result.violation = world.violation();
    if (result.violation.empty() && !seen.insert(key_of(world))) continue;
    enter(std::move(world));
  }
  if (!result.violation.empty()) record();
  result.states = seen.size();
  result.seconds = watch.seconds();
  return result;
}

Result walk(const Bounds& bounds, std::uint64_t seed, int runs, int steps, int fault_odds) {
  const Stopwatch watch;
  Result result;
  std::mt19937_64 random(seed);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  const auto shared = std::make_shared<const Bounds>(bounds);
  for (int run = 0; run < runs && result.violation.empty(); ++run) {
    World world(shared);
    result.trace.clear();
    for (int i = 0; i < steps; ++i) {
      const auto choices = world.choices();
      std::vector<Choice> faults, others;
      for (const Choice& choice : choices) (is_fault(choice) ? faults : others).push_back(choice);
      if (others.empty()) {
        result.violation = world.stuck();
        if (faults.empty() || !result.violation.empty()) break;
      }
      const bool fault =
          others.empty() || (!faults.empty() && below(static_cast<std::size_t>(fault_odds)) == 0);
      const auto& from = fault ? faults : others;
      result.trace.push_back(from[below(from.size())]);
      world.step(result.trace.back());
      ++result.edges;
      ++result.states;
      result.violation = world.violation();
      if (!result.violation.empty()) break;
      result.depth = std::max<std::uint64_t>(result.depth, result.trace.size());
    }
  }
  result.complete = false;
  if (result.violation.empty()) result.trace.clear();
  result.seconds = watch.seconds();
  return result;
}

World replay(const Bounds& bounds, const std::vector<Choice>& trace) {
  World world(std::make_shared<const Bounds>(bounds));
  for (const Choice& choice : trace) world.apply(choice);
  return world;
}

namespace {

/// Whether the world after the trace violates a promise, or (if that is all there was) is stuck.
bool still_wrong(const Bounds& bounds, const std::vector<Choice>& trace, bool safety) {
  const World world = replay(bounds, trace);
  if (!world.violation().empty() || safety) return !world.violation().empty();
  return only_faults(world.choices()) && !world.stuck().empty();
}

}  // namespace

std::vector<Choice> shorten(const Bounds& bounds, std::vector<Choice> trace) {
  const bool safety = !replay(bounds, trace).violation().empty();
  for (std::size_t chunk = std::max<std::size_t>(trace.size() / 2, 1);;) {
    bool shorter = false;
    for (std::size_t i = 0; i < trace.size();) {
      std::vector<Choice> attempt(trace.begin(), trace.begin() + static_cast<std::ptrdiff_t>(i));
      const std::size_t end = std::min(i + chunk, trace.size());
      attempt.insert(attempt.end(), trace.begin() + static_cast<std::ptrdiff_t>(end), trace.end());
      if (still_wrong(bounds, attempt, safety)) {
        trace = std::move(attempt);
        shorter = true;
      } else {
        i += chunk;
      }
    }
    if (chunk == 1 && !shorter) break;
    if (chunk > 1) chunk /= 2;
  }
  // What could not happen when replayed is no part of the story.
  World world(std::make_shared<const Bounds>(bounds));
  std::erase_if(trace, [&](const Choice& choice) { return !world.apply(choice); });
  return trace;
}

std::string tell(const Bounds& bounds, const std::vector<Choice>& trace) {
  World world(std::make_shared<const Bounds>(bounds));
  world.keep_log(true);
  std::string text;
  int line = 0;
  for (const Choice& choice : trace) {
    if (!world.apply(choice)) continue;
    text += std::to_string(++line) + ". " + to_string(choice) + "\n";
    for (const std::string& what : world.log()) text += "      " + what + "\n";
  }
  if (!world.violation().empty()) {
    text += "VIOLATED: " + world.violation() + "\n";
  } else if (only_faults(world.choices()) && !world.stuck().empty()) {
    text += "VIOLATED: " + world.stuck() + "\n";
  }
  return text;
}

std::vector<Choice> read_trace(const Bounds& bounds, const std::string& text) {
  World world(std::make_shared<const Bounds>(bounds));
  std::vector<Choice> trace;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const auto digits = line.find_first_not_of("0123456789");
    if (digits == 0 || digits == std::string::npos || line.compare(digits, 2, ". ") != 0) continue;
    const std::string what = line.substr(digits + 2);
    const auto choices = world.choices();
    const auto choice = std::find_if(choices.begin(), choices.end(),
                                     [&](const Choice& c) { return to_string(c) == what; });
    if (choice == choices.end()) throw std::invalid_argument("this cannot happen here: " + line);
    world.step(*choice);
    trace.push_back(*choice);
  }
  return trace;
}

std::string summary(const Bounds& b, const Result& result) {
  std::string text = std::to_string(b.world) + " ranks, " + std::to_string(b.steps) + " steps";
  const auto add = [&](int n, const char* what) {
    if (n > 0) text += ", " + std::to_string(n) + " " + what;
  };
  add(b.crashes, "crashes");
  add(b.host_losses, "host losses");
  add(b.losses_beyond, "losses beyond");
  add(b.lost_messages, "lost messages");
  add(b.timeouts, "timeouts");
  add(b.local_failures, "local failures");
  add(b.skips, "skips");
  add(b.early_ends, "early ends");
  add(b.ends, "wishes to end");
  add(b.mismatches, b.any_cut ? "other cuts" : "mismatches");
  add(b.flips, "flips");
  add(b.zombies, "zombies");
  add(b.unanswered, "unanswered");
  add(b.differences, "differences");
  add(b.reseats, "restarts on other hosts");
  add(b.hangs, "hangs");
  add(b.waits, "waits");
  add(b.slow_disks, "slow disks");
  add(b.stuck_disks, "stuck disks");
  if (b.seats > 1) text += ", " + std::to_string(b.seats) + " ranks a host";
  if (!b.lenders.empty()) text += ", replicas that borrow";
  if (b.claims > 0) text += ", " + std::to_string(b.claims) + " claims a message";
  if (b.disk) text += b.local_disks ? ", a disk for each host" : ", disk";
  if (b.old_job) text += ", an old job's step on disk";
  if (b.old_unclaimed) text += ", not claimed by the last rank";
  if (b.old_memory) text += ", a newer one in memory";
  if (b.old_rot) text += " and, with a damaged file, on disk";
  if (b.old_apart) text += ", on hosts with disks of their own";
  if (b.old_kept) text += ", no files";
  if (b.finish) text += ", finish";
  char figures[160];
  std::snprintf(figures, sizeof figures, ": %llu states, %llu edges, depth %llu, %.1f s%s",
                static_cast<unsigned long long>(result.states),
                static_cast<unsigned long long>(result.edges),
                static_cast<unsigned long long>(result.depth), result.seconds,
                result.violation.empty() ? (result.complete ? ", all" : "") : ", VIOLATED");
  return text + figures;
}

}  // namespace meshstage::explorer
