// Which number a generation gets, and that nobody waits in an older one.
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/comm/wrapped_store.hpp>

#include "tests/comm/membership_job.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace meshstage::testing;

/// Passes every call on; `before_create(key)` may wait first.
class GatedStore final : public WrappedStore {
 public:
  using WrappedStore::WrappedStore;
  std::function<void(const std::string& key)> before_create;

  std::string compare_and_create(const std::string& key, std::string_view value,
                                 Deadline deadline) override {
    before_create(key);
    return WrappedStore::compare_and_create(key, value, deadline);
  }
};

}  // namespace

TEST_CASE(
    "a rank that is late into a claimed generation does not wait there when a newer is claimed") {
  // Rank 0 claims 4 and is on its way into it, when rank 1, whose vault has seen 41, claims 42 and
  // is in it. If rank 1 comes so early that it ends 4 before rank 0 is there, rank 0 claims 5.
  Job job(2, 3);
  job.store->set("job/run/3", "41");
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 2; ++r) {
    auto options = job.options(r);
    const auto store = std::make_shared<GatedStore>(job.store);
    store->before_create = [&, r, reached = false](const std::string& name) mutable {
      const auto wait = [&](const std::string& what) { (void)job.store->wait_for(what, soon()); };
      if (r == 0 && name.ends_with("/place/0") && !std::exchange(reached, true)) {
        job.store->set("reached", "4", soon());
        wait(key(42, "place/1"));
      }
      if (r == 1 && name == claim_key(42)) wait("reached");
    };
    options.store = store;
    members.push_back(std::make_unique<Membership>(std::move(options)));
  }
  std::vector<Generation> generations(2);
  run_ranks_without_error(2, [&](int r) {
    const auto i = static_cast<std::size_t>(r);
    generations[i] = members[i]->form(r == 1 ? 41 : 3, soon());
  });
  for (const auto& g : generations) {
    CHECK(g.number >= 42);
    g.close();
  }
}

TEST_CASE("a generation is numbered above all that any vault or the store has seen") {
  Job job(3, 3);
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 3; ++r) members.push_back(job.member(r));
  std::vector<Generation> generations(3);
  run_ranks_without_error(3, [&](int r) {
    generations[static_cast<std::size_t>(r)] =
        members[static_cast<std::size_t>(r)]->form(r == 1 ? 41 : 3, soon());
  });
  for (const auto& g : generations) CHECK(g.number == generations[0].number);
  CHECK(generations[0].number > 41);
}

TEST_CASE("who waits in a generation comes along when a newer one is claimed") {
  // As if another rank had looked for generations before this one was claimed, and claimed its own.
  Job job(3, 3);
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 3; ++r) members.push_back(job.member(r));
  std::vector<Generation> generations(3);
  run_ranks_without_error(3, [&](int r) {
    if (r > 0) {
      (void)job.store->wait_for(key(4, "place/0"), soon());
      job.store->compare_and_create(claim_key(42), "3 ? 0");
    }
    generations[static_cast<std::size_t>(r)] =
        members[static_cast<std::size_t>(r)]->form(r == 0 ? 3 : 41, soon());
  });
  for (const auto& g : generations) CHECK(g.number == 42);
}

TEST_CASE("an empty Store begins a run of its own, above all that any rank has seen") {
  // The same job, twice, in two Stores that know nothing of each other: no number is in both, and
  // neither's clock matters to a rank that has seen a number of a later year.
  const std::uint64_t later = draw_run(draw_run(0) + (std::uint64_t{1000} << 25U)) + 7;
  std::set<std::uint64_t> runs;
  for (const std::uint64_t seen : {std::uint64_t{0}, std::uint64_t{0}, later, later}) {
    Job job(3);
    job.store->remove("job/run/0", soon());
    std::vector<std::unique_ptr<Membership>> members;
    for (int r = 0; r < 3; ++r) members.push_back(job.member(r));
    for (int i = 0; i < 2; ++i) {
      std::vector<Generation> generations(3);
      run_ranks_without_error(3, [&](int r) {
        const auto at = static_cast<std::size_t>(r);
        generations[at] = members[at]->form(r == 1 ? seen : 0, soon());
      });
      const std::uint64_t number = generations[0].number;
      CHECK(number > seen);
      CHECK_FALSE(same_run(number, seen));
      for (const auto& g : generations) {
        CHECK(g.number == number);
        g.close();
      }
      CHECK(runs.insert(number).second);
    }
  }
  CHECK(runs.size() == 8);
}

TEST_CASE("the number of a run that no rank has drawn is refused, and named") {
  for (const std::string& text :
       {std::string("x"), std::string("99999999999999999999"), std::to_string(kLastGeneration)}) {
    INFO(text);
    Job job(2);
    job.store->set("job/run/0", text);
    const auto member = job.member(0);
    CHECK_THAT(error_of([&] { (void)member->form(3, soon()); }), contains_text("job/run/0"));
  }
}

TEST_CASE("a generation ends for good, or a newer one follows it: the first to say so decides") {
  Job job(2);
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 2; ++r) members.push_back(job.member(r));
  const auto form = [&] {
    const auto generations = form_all(members);
    for (const auto& g : generations) g.close();
    return generations[0].number;
  };
  const std::uint64_t first = form();
  const std::uint64_t second = form();
  CHECK_FALSE(claim_the_end(*job.store, "job", first, soon()));
  CHECK(claim_the_end(*job.store, "job", second, soon()));
  CHECK(claim_the_end(*job.store, "job", second, soon()));  // tried again
  const std::uint64_t third = form();
  CHECK(third == second + 1);
  CHECK(claim_the_end(*job.store, "job", third, soon()));
}
