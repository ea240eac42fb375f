// Runs of a job that never heard of each other: several starts, each with the Store of the one
// before or with an empty one, on any two of four hosts. A host that has no part in a start keeps
// what lies in its memory. All histories of three starts are gone through; protocol::choose() picks
// what the last ones recover.
#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <meshstage/core/protocol/choose.hpp>

#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace meshstage::protocol;

constexpr int kRanks = 2;
constexpr int kHosts = 4;
constexpr int kStarts = 3;

/// The rules, each of which a test removes.
struct Rules {
  bool own_numbers = true;   ///< A Store that knows nothing of the job begins a run of its own.
  bool forget = true;        ///< What the Store's note of a finished job covers is no claim.
  bool remove_first = true;  ///< The note comes after the vaults.
};

/// An image in a host's memory.
struct Image {
  int owner = 0;
  ImageId id{};
  int start = 0;  ///< Which start staged it: not to be seen by the rules.
};

struct World {
  std::array<std::vector<Image>, kHosts> memory{};
  std::array<bool, kStarts> finished{};  ///< finish() returned at some rank of that start.
  std::uint64_t newest = 0;  ///< The Store's newest claim; 0: it knows nothing of the job.
  std::uint64_t note = 0;    ///< The Store's note of a finished generation.
  std::uint64_t over = 0;    ///< In which finish() returned, with the Store that is there.
  std::uint64_t drawn = 0;   ///< How many runs there were: their numbers' random bits.
};

/// What is chosen freely for one start.
struct Course {
  std::array<int, kRanks> host{};  ///< Of each rank.
  bool empty_store = false;
  bool clock_behind = false;  ///< The run's clock is behind all others.
  int staged = 0;             ///< 0: both images; 1, 2: the step failed, and one was sealed.
  /// 0: all are killed; 1: finish(); 2: the root dies in finish(), at its first write; 3: when its
  /// vault is gone.
  int end = 0;
};

std::vector<Course> courses(int start) {
  std::vector<Course> all;
  for (int zero = 0; zero < kHosts; ++zero) {
    for (int one = 0; one < kHosts; ++one) {
      if (zero == one) continue;
      if (start == 0 && (zero != 0 || one != 1)) continue;  // the hosts are alike
      for (const bool empty : {true, false}) {
        for (const bool behind : {false, true}) {
          if (start == 0 && (!empty || behind)) continue;
          for (int staged = 0; staged < 3; ++staged) {
            for (int end = 0; end < 4; ++end) {
              all.push_back({{zero, one}, empty, behind, staged, end});
            }
          }
        }
      }
    }
  }
  return all;
}

std::uint64_t number_of(World& world, const Rules& rules, const Course& course,
                        std::uint64_t seen) {
  const std::uint64_t above = std::max(world.newest, seen);
  if (!rules.own_numbers || (world.newest != 0 && seen <= world.newest)) return above + 1;
  // As draw_run(): above what was seen, with bits that no other run has.
  constexpr std::uint64_t kTime = 1U << 20U;
  constexpr std::uint64_t kRandom = 1U << 10U;
  std::uint64_t time = above / kTime + 1;
  if (!course.clock_behind) time = std::max(time, 10 * (world.drawn + 1));
  return time * kTime + ++world.drawn * kRandom + 1;
}

void keep(std::vector<Image>& memory, const Image& image) {
  std::erase_if(memory, [&](const Image& old) { return old.owner == image.owner; });
  memory.push_back(image);
}

/// One start, from forming to its end. Returns what it breaks; empty if nothing.
std::string run_start(World& world, const Rules& rules, const Course& course, int start) {
  if (course.empty_store) world.newest = world.note = world.over = 0;
  std::vector<Claim> claims;
  std::vector<Image> found;
  std::uint64_t seen = 0;
  for (const int host : course.host) {
    for (const Image& image : world.memory[static_cast<std::size_t>(host)]) {
      seen = std::max(seen, image.id.generation);
      if (rules.forget && image.id.generation <= world.note) continue;
      Claim claim;
      claim.owner = image.owner;
      claim.id = image.id;
      claims.push_back(claim);
      found.push_back(image);
    }
  }
  const std::uint64_t generation = number_of(world, rules, course, seen);
  world.newest = generation;
  const ImageId chosen = choose(claims, kRanks);

  int from = -1;
  for (const Image& image : found) {
    if (image.id != chosen) continue;
    if (from >= 0 && image.start != from) return "a step is put together from two runs";
    from = image.start;
  }
  if (chosen.exists() && chosen.generation <= world.over && !course.empty_store) {
    return "a finished job comes back";
  }
  // What lies within reach of one start that did not finish is not passed over.
  for (int s = 0; s < start; ++s) {
    if (world.finished[static_cast<std::size_t>(s)]) continue;
    std::array<bool, kRanks> there{};
    ImageId id;
    for (const int host : course.host) {
      for (const Image& image : world.memory[static_cast<std::size_t>(host)]) {
        if (image.start != s) continue;
        there[static_cast<std::size_t>(image.owner)] = true;
        id = image.id;
      }
    }
    if (id.generation <= world.over) continue;  // the job finished since
    if (there[0] && there[1] && chosen < id) return "a complete step is passed over";
  }

  // All starts stage steps of the same numbers.
  for (int owner = 0; owner < kRanks; ++owner) {
    if (course.staged != 0 && course.staged != owner + 1) continue;
    for (const int host : course.host) {
      keep(world.memory[static_cast<std::size_t>(host)], {owner, {generation, 7}, start});
    }
  }
  const auto remove_vault = [&](int rank) {
    world.memory[static_cast<std::size_t>(course.host[static_cast<std::size_t>(rank)])].clear();
  };
  if (course.end == 1) {
    for (int rank = 0; rank < kRanks; ++rank) remove_vault(rank);
    world.note = world.over = generation;
    world.finished[static_cast<std::size_t>(start)] = true;
  } else if (course.end == 2) {
    rules.remove_first ? remove_vault(0) : void(world.note = generation);
  } else if (course.end == 3) {
    remove_vault(0);
    if (!rules.remove_first) world.note = generation;
  }
  return {};
}

struct Outcome {
  std::size_t starts = 0;
  std::string broken;
};

void explore(const World& world, const Rules& rules, int start, Outcome& outcome) {
  if (start == kStarts) return;
  for (const Course& course : courses(start)) {
    World next = world;
    ++outcome.starts;
    outcome.broken = run_start(next, rules, course, start);
    if (!outcome.broken.empty()) return;
    explore(next, rules, start + 1, outcome);
    if (!outcome.broken.empty()) return;
  }
}

std::string broken_by(const Rules& rules) {
  Outcome outcome;
  explore({}, rules, 0, outcome);
  return outcome.broken;
}

}  // namespace

TEST_CASE("three starts on any hosts, with any Store, mix nothing and bring nothing back") {
  Outcome outcome;
  explore({}, {}, 0, outcome);
  CHECK(outcome.broken.empty());
  CHECK(outcome.starts == 12U + 12U * 576U + 12U * 576U * 576U);
}

TEST_CASE("without numbers of its own for each run, a step is put together from two runs") {
  CHECK(broken_by({.own_numbers = false}) == "a step is put together from two runs");
}

TEST_CASE("without the note of a finished job, it comes back from a host that was out of reach") {
  CHECK(broken_by({.forget = false}) == "a finished job comes back");
}

TEST_CASE("if the note came before the vaults are gone, a root that dies then loses the step") {
  CHECK(broken_by({.remove_first = false}) == "a complete step is passed over");
}
