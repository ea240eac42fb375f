// One of many ranks: forming_worker STORE RANK SIZE. Says "here", waits for "go" in the Store,
// forms one generation over sockets and Gloo, writes to formed/<rank>
//   "<generation> <CLOCK_MONOTONIC, ms> <linked peers> <sockets>"
// and ends with its standard input.
#include <chrono>
#include <iostream>
#include <memory>
#include <string>

#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/generation/number.hpp>

#include "tests/support/own_process.hpp"

int main(int argc, char** argv) {
  using namespace std::chrono_literals;
  using namespace meshstage;
  if (argc != 4) return 2;
  try {
    const std::string rank = argv[2];
    const auto store = open_store(argv[1]);
    MembershipOptions options;
    options.job = "many";
    options.rank = std::stoi(rank);
    options.world_size = std::stoi(argv[3]);
    options.store = store;
    options.transport = make_tcp_transport({});
    options.data_peers = {(options.rank + options.world_size / 2) % options.world_size};
    Membership member(options);
    store->set("here/" + rank, "");
    (void)store->wait_for("go", Deadline::after(120s));
    const Generation generation = member.form(0, Deadline::after(60s));
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    store->set(
        "formed/" + rank,
        std::to_string(generation_in_run(generation.number)) + " " +
            std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()) +
            " " + std::to_string(generation.links->peers().size()) + " " +
            std::to_string(testing::count_sockets()));
    while (std::cin.get() != std::char_traits<char>::eof()) {
    }
    generation.close();
    return 0;
  } catch (const Error& e) {
    std::cerr << "forming_worker " << argv[2] << ": " << e.what() << "\n";
    return 1;
  }
}
