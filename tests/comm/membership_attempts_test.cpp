// Attempts to form a generation that fail, over the in-process fabric: what is left of them, and
// what is said of them.
#include <array>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/comm/wrapped_store.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/comm/membership_job.hpp"
#include "tests/support/catch.hpp"

namespace {

using namespace meshstage;
using namespace meshstage::testing;
using Catch::Matchers::Contains;

/// A transport whose first attempt to form a generation goes wrong somewhere (where: empty,
/// nowhere).
class FirstFails final : public Transport {
 public:
  FirstFails(std::shared_ptr<Transport> inner, std::shared_ptr<Store> store, std::string where)
      : inner_(std::move(inner)), store_(std::move(store)), where_(std::move(where)) {}
  std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    auto links = inner_->connect_links(request, store, deadline, stop);
    if (request.generation == 1) store_->set("linked/" + std::to_string(request.rank), "");
    if (where_ != "links" || request.generation != 1) return links;
    (void)store_->wait_for("linked/0", deadline);
    links->close();  // before this rank has told anything
    outcome = store_->wait_for(key(1, "outcome"), deadline);
    throw make_error<PeerLost>("cannot connect", 0);
  }
  std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    if (request.name == where_ && request.generation == 1) {
      throw make_error<PeerLost>("no more connections", 0);
    }
    auto group = inner_->connect_group(request, store, deadline, stop);
    if (request.generation == 1) first.push_back(group);
    return group;
  }
  std::string outcome;
  std::vector<std::weak_ptr<ProcessGroup>> first;  ///< Of the attempt that failed.

 private:
  const std::shared_ptr<Transport> inner_;
  const std::shared_ptr<Store> store_;
  const std::string where_;
};

}  // namespace

TEST_CASE("while several connections are agreed on and made, a peer's end abandons the attempt") {
  const std::string where = GENERATE("links", "data", "data-1", "data-3");
  Job job(2);
  const auto sound = std::make_shared<FirstFails>(job.fabric.attach(0), job.store, "");
  const auto failing = std::make_shared<FirstFails>(job.fabric.attach(1), job.store, where);
  std::string said;  // by rank 1
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 2; ++r) {
    auto options = job.options(r);
    options.transport = r == 0 ? sound : failing;
    options.connections = 4;
    if (r == 1) options.failed = [&](const std::string& text) { said += text; };
    members.push_back(std::make_unique<Membership>(std::move(options)));
  }
  const auto generations = form_all(members);
  for (std::size_t r = 0; r < 2; ++r) {
    CHECK(generations[r].number == 2);
    CHECK(generations[r].data->connections(1 - static_cast<int>(r)) == 4);
    generations[r].close();
  }
  if (where == "links") {
    CHECK_THAT(failing->outcome, Contains("rank 1 went away while forming"));
    CHECK_THAT(said, Contains("could not be formed") && Contains("cannot connect"));  // its own
  }
  CHECK(failing->first.size() == (where == "data-1" ? 1U : where == "data-3" ? 3U : 0U));
  for (const auto& group : failing->first) CHECK(group.expired());  // each with its sockets
}

namespace {

/// A Store of a rank in the first attempt. Rank 1 cannot wait for its outcome any more when rank 0,
/// the root, decides; then rank 1 is first.
class OneWaitFails final : public WrappedStore {
 public:
  OneWaitFails(std::shared_ptr<Store> inner, int rank)
      : WrappedStore(std::move(inner)), rank_(rank) {}
  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop) override {
    if (rank_ == 1 && keys.front() == key(1, "outcome")) {
      (void)wait_for("rank 0 decides", soon(), std::move(stop));
      throw IoError("the wire is cut");
    }
    return WrappedStore::wait_for_any(keys, deadline, std::move(stop));
  }
  std::string compare_and_create(const std::string& name, std::string_view value,
                                 Deadline deadline) override {
    if (rank_ == 0 && value == "formed" && name == key(1, "outcome")) {
      set("rank 0 decides", "", deadline);
      return wait_for(name, soon());
    }
    return WrappedStore::compare_and_create(name, value, deadline);
  }

 private:
  const int rank_;
};

}  // namespace

TEST_CASE("why a rank could not wait for an attempt's outcome is said once by each rank") {
  Job job(2);
  std::array<std::vector<std::string>, 2> said;
  std::vector<std::unique_ptr<Membership>> members;
  for (int r = 0; r < 2; ++r) {
    auto options = job.options(r);
    options.store = std::make_shared<OneWaitFails>(job.store, r);
    options.failed = [&lines = said.at(static_cast<std::size_t>(r))](const std::string& text) {
      lines.push_back(text);
    };
    members.push_back(std::make_unique<Membership>(std::move(options)));
  }
  for (const auto& g : form_all(members)) {
    CHECK(g.number == 2);
    g.close();
  }
  for (const auto& lines : said) {
    REQUIRE(lines.size() == 1);
    CHECK_THAT(lines[0], Contains("generation 1 could not be formed: rank 1 could not wait for the "
                                  "outcome: ") &&
                             Contains("the wire is cut") && Contains("; trying again"));
  }
}
