// A rank of membership_process_test: membership_worker STORE RANK SIZE. Forms generation after
// generation; in each it adds up the ranks, writes what it sees to report/<generation>/<rank>, and
// streams to its neighbours until one is lost. Ends with its standard input, in order.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <iostream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/membership.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/generation/number.hpp>

namespace {

using namespace std::chrono_literals;
using namespace meshstage;

struct Events {
  std::mutex mutex;
  std::condition_variable changed;
  bool lost = false;
  bool ended = false;
};

void live(Membership& member, const Generation& generation, Store& store, Events& events,
          const std::string& last_cause) {
  ControlHandlers handlers;
  handlers.on_lost = [&](int peer, LostReason reason, const std::string& /*detail*/) {
    // Who closed in order has seen a death before us and has written down whose.
    if (reason != LostReason::kClosed) {
      (void)member.declare_death(generation.number, peer, std::string(to_string(reason)));
    }
    const auto cause = member.cause_of(generation.number);
    generation.abort(std::make_exception_ptr(
        make_error<PeerLost>("rank " + std::to_string(cause ? cause->rank : peer), peer)));
    const std::lock_guard lock(events.mutex);
    events.lost = true;
    events.changed.notify_all();
  };
  generation.links->set_handlers(std::move(handlers));
  try {
    // Bulk data in both groups all the time, so that deaths come in mid transfer.
    std::vector<std::int64_t> data(1 << 18, generation.rank);
    collectives::all_reduce(*generation.training, std::span(data), collectives::ReduceOp::kSum,
                            Deadline::after(30s));
    store.set("report/" + std::to_string(generation_in_run(generation.number)) + "/" +
                  std::to_string(generation.rank),
              "sum " + std::to_string(data.back()) + last_cause);
    bool going = true;
    while (going) {
      std::int64_t stop = 0;
      {
        const std::lock_guard lock(events.mutex);
        stop = events.ended ? 1 : 0;
      }
      data.assign(data.size(), stop);
      collectives::all_reduce(*generation.training, std::span(data), collectives::ReduceOp::kSum,
                              Deadline::after(30s));
      going = data[0] == 0;
    }
    // Before the group is closed, which may cut off what others still receive of the last sum.
    store.set("ended", "");
  } catch (const Error&) {
    // Lost, or the others have ended: the handler hears of it, too.
    std::unique_lock lock(events.mutex);
    events.changed.wait(lock, [&] { return events.lost; });
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const auto store = std::make_shared<FileStore>(argv[1]);
  Events events;
  std::thread input([&] {
    while (std::cin.get() != std::char_traits<char>::eof()) {
    }
    const std::lock_guard lock(events.mutex);
    events.ended = true;
  });
  int status = 0;
  try {
    MembershipOptions options;
    options.job = "job";
    options.rank = std::stoi(argv[2]);
    options.world_size = std::stoi(argv[3]);
    options.store = store;
    TcpTransportOptions tcp;
    tcp.links.heartbeat_interval = 50ms;
    tcp.links.silence_deadline = 5s;
    options.transport = make_tcp_transport(tcp);
    options.data_peers = {(options.rank + options.world_size / 2) % options.world_size};
    Membership member(options);
    std::string last_cause;
    for (std::uint64_t seen = 0;;) {
      const Generation generation = member.form(seen, Deadline::after(30s));
      seen = generation.number;
      live(member, generation, *store, events, last_cause);
      const auto cause = member.cause_of(seen);
      generation.close();
      if (!cause || store->get("ended")) break;
      last_cause = ", after the death of " + std::to_string(cause->rank);
      const std::lock_guard lock(events.mutex);
      events.lost = false;
    }
  } catch (const Error& e) {
    std::cerr << "membership_worker " << argv[2] << ": " << e.what() << "\n";
    status = dynamic_cast<const InvalidState*>(&e) != nullptr ? 3 : 1;
  }
  input.join();
  return status;
}
