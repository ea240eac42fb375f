#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/comm/deliveries_impl.hpp>
#include <meshstage/core/comm/socket/frame_impl.hpp>
#include <meshstage/core/comm/socket/frame_stream_impl.hpp>
#include <meshstage/core/comm/socket/links.hpp>
#include <meshstage/core/comm/socket/net_impl.hpp>

namespace meshstage::socket_links {

using link_wire::FrameType;
using link_wire::Greeting;
using net::Descriptor;
using Clock = Deadline::Clock;

/// How long the links still read the last bytes of a process that has ended; without a proxy on the
/// way they arrive at once. No end of file comes if a child that the process forked holds its
/// sockets open.
constexpr std::chrono::milliseconds kLastWords{200};

inline framing::FrameStream stream_over(Descriptor fd) {
  return {link_wire::kFormat, std::move(fd)};
}

constexpr int kNobody = -1;  // an accepted connection that has not said hello

struct Connection {
  enum class State { kConnecting, kGreeting, kUp, kClosing };
  framing::FrameStream stream;
  State state = State::kGreeting;
  int peer = kNobody;
  std::uint64_t nonce = 0;      // of the listener, if we connect
  bool waits_for_room = false;  // EPOLLOUT is on
  Clock::time_point heard = Clock::now();
  Clock::time_point sent = Clock::now();
  Descriptor process;  // readable once the peer's process has ended; may be invalid
  bool process_ended = false;
};

class SocketLinks final : public ControlLinks {
 public:
  SocketLinks(const LinkOptions& options, const ConnectRequest& request);
  ~SocketLinks() override { close(); }

  /// Blocks until every peer is up; see Transport::connect_links.
  void connect(const std::string& host, Store& store, Deadline deadline, std::stop_token stop);

  [[nodiscard]] int rank() const noexcept override { return request_.rank; }
  [[nodiscard]] const std::vector<int>& peers() const noexcept override { return request_.peers; }

  void set_handlers(ControlHandlers handlers) override {
    deliveries_.set_handlers(std::move(handlers));
    wake();
  }
  void send(int peer, std::span<const std::byte> message) override;
  void close() noexcept override;

 private:
  using Iterator = std::map<int, Connection>::iterator;

  /// False if the system has no room for it.
  bool watch(int fd, std::uint32_t events, int operation) noexcept;
  /// Takes `descriptor` out of epoll and closes it.
  void unwatch(Descriptor& descriptor) noexcept;
  void wake() noexcept;
  [[nodiscard]] std::string key(int rank) const {
    return request_.store_prefix + "/" + request_.name + "/" + std::to_string(rank);
  }

  void run();
  /// Called when run() threw: every peer is lost, and the handlers hear of it.
  void thread_failed(std::exception_ptr failure);

  // All below run on the links' thread.
  [[nodiscard]] int milliseconds_to_next_tick() const MESHSTAGE_REQUIRES(mutex_);
  void handle(int fd, std::uint32_t events) MESHSTAGE_REQUIRES(mutex_);
  void accept_all() MESHSTAGE_REQUIRES(mutex_);
  void read_from(Iterator c) MESHSTAGE_REQUIRES(mutex_);
  /// False once the connection is gone.
  bool take_frame(Iterator c, FrameType type, std::span<const std::byte> payload)
      MESHSTAGE_REQUIRES(mutex_);
  bool greeted(Iterator c, const Greeting& got) MESHSTAGE_REQUIRES(mutex_);
  bool welcomed(Iterator c, const Greeting& got) MESHSTAGE_REQUIRES(mutex_);
  void refuse(Iterator c, const std::string& why) MESHSTAGE_REQUIRES(mutex_);
  /// For bytes that are no frame of this protocol: refuses the connection, and the peer is lost.
  /// Returns false, as take_frame() does then.
  bool misunderstood(Iterator c, const std::string& what) MESHSTAGE_REQUIRES(mutex_);
  void queue(Connection& c, FrameType type, std::span<const std::byte> payload);
  /// Writes what the socket takes.
  void flush(Connection& connection);
  void up(Iterator c, const ProcessAddress& process) MESHSTAGE_REQUIRES(mutex_);
  /// Called when the peer's process has ended; bytes that it sent before may still be on their way.
  void process_ended(Connection& connection);
  void end(Iterator c) MESHSTAGE_REQUIRES(mutex_);
  /// Ends a connection that is of no use any more; a peer that was up is lost.
  void drop(Iterator c, LostReason reason, const std::string& detail) MESHSTAGE_REQUIRES(mutex_);
  void tick() MESHSTAGE_REQUIRES(mutex_);
  void say_goodbye() MESHSTAGE_REQUIRES(mutex_);
  void fail(std::exception_ptr error) MESHSTAGE_REQUIRES(mutex_) {
    if (!failure_) failure_ = std::move(error);
    changed_.notify_all();
    failed_.request_stop();
  }
  /// The time at which a silent connection is given up.
  [[nodiscard]] Deadline patience_ends(const Connection& c) const;
  /// The connection of a peer that is up, or end().
  [[nodiscard]] Iterator find_up(int peer) MESHSTAGE_REQUIRES(mutex_) {
    return std::find_if(connections_.begin(), connections_.end(), [peer](const auto& entry) {
      return entry.second.peer == peer && entry.second.state == Connection::State::kUp;
    });
  }

  const LinkOptions options_;
  ConnectRequest request_;
  Descriptor epoll_;
  Descriptor wake_;
  Deliveries deliveries_;
  Mutex joining_;

  Mutex mutex_;
  CondVar changed_;
  Descriptor listener_ MESHSTAGE_GUARDED_BY(mutex_);
  std::uint64_t nonce_ = 0;  // set before the thread starts
  std::map<int, Connection> connections_ MESHSTAGE_GUARDED_BY(mutex_);  // by descriptor
  /// Peers that are, or were, connected.
  std::set<int> up_ MESHSTAGE_GUARDED_BY(mutex_);
  bool connecting_ MESHSTAGE_GUARDED_BY(mutex_) = true;
  std::exception_ptr failure_ MESHSTAGE_GUARDED_BY(mutex_);  // of connecting
  std::stop_source failed_;                                  // ends a wait in the Store
  std::string last_refusal_ MESHSTAGE_GUARDED_BY(mutex_);
  bool closing_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  Clock::time_point last_tick_ MESHSTAGE_GUARDED_BY(mutex_) = Clock::now();
  Thread thread_ MESHSTAGE_GUARDED_BY(joining_);  // last: it uses all of the above
};

}  // namespace meshstage::socket_links
