#include "tests/conformance/ranks.hpp"

#include <chrono>
#include <stdexcept>
#include <thread>

#include <meshstage/core/error/rank_tree.hpp>

namespace meshstage::testing {

namespace {
constexpr auto kPatience = std::chrono::seconds(30);
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

std::vector<std::string> run_ranks(int count, const std::function<void(int rank)>& body) {
  std::vector<std::string> errors(static_cast<std::size_t>(count));
  std::vector<std::thread> threads;
  for (int r = 0; r < count; ++r) {
    threads.emplace_back(
        [&, r] { errors[static_cast<std::size_t>(r)] = error_of([&] { body(r); }); });
  }
  for (auto& t : threads) t.join();
  return errors;
}

void run_ranks_without_error(int count, const std::function<void(int rank)>& body) {
  const auto errors = run_ranks(count, body);
  std::string all;
  for (std::size_t r = 0; r < errors.size(); ++r) {
    if (!errors[r].empty()) all += "rank " + std::to_string(r) + ": " + errors[r] + "\n";
  }
  if (!all.empty()) throw std::runtime_error(all);
}

ConnectRequest request_of(const std::string& name, int rank, int world, Linked linked) {
  ConnectRequest request;
  request.job = "conformance";
  request.generation = 7;
  request.name = name;
  request.rank = rank;
  request.world_size = world;
  request.store_prefix = "net";
  if (linked == Linked::kTree) {
    request.peers = tree::neighbours(rank, world);
  } else {
    for (int r = 0; r < world; ++r) {
      if (r != rank) request.peers.push_back(r);
    }
  }
  return request;
}

std::vector<std::shared_ptr<ProcessGroup>> make_groups(const TransportOf& transport, int world,
                                                       Linked linked) {
  InMemoryStore store;
  std::vector<std::shared_ptr<ProcessGroup>> groups(static_cast<std::size_t>(world));
  run_ranks_without_error(world, [&](int rank) {
    groups[static_cast<std::size_t>(rank)] = transport(rank)->connect_group(
        request_of("group", rank, world, linked), store, Deadline::after(kPatience));
  });
  return groups;
}

std::vector<std::shared_ptr<ControlLinks>> make_links(const TransportOf& transport, int world,
                                                      Linked linked) {
  InMemoryStore store;
  std::vector<std::shared_ptr<ControlLinks>> links(static_cast<std::size_t>(world));
  run_ranks_without_error(world, [&](int rank) {
    links[static_cast<std::size_t>(rank)] = transport(rank)->connect_links(
        request_of("links", rank, world, linked), store, Deadline::after(kPatience));
  });
  return links;
}

}  // namespace meshstage::testing
