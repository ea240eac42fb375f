#include <meshstage/core/comm/tcp_store/store.hpp>

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/lease_pool_impl.hpp>
#include <meshstage/core/comm/server_call_impl.hpp>
#include <meshstage/core/comm/socket/frame_stream_impl.hpp>
#include <meshstage/core/comm/tcp_store/wire_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

using net::Descriptor;
using server_call::Broken;
using server_call::Late;
using tcp_store::Texts;
using tcp_store::Type;

constexpr std::chrono::minutes kLongestPoll{10};
constexpr std::size_t kMaxValue = std::size_t{1} << 20;

struct Reply {
  Type type = Type::kRefusal;
  Texts texts;
};

class Connection {
 public:
  explicit Connection(Descriptor fd) : stream_(tcp_store::kFormat, std::move(fd)) {}

  /// Throws Broken, Late, and Cancelled once `stop` is readable.
  Reply exchange(Type type, std::span<const std::string> texts, Deadline deadline, int stop) {
    stream_.queue(static_cast<std::uint16_t>(type), tcp_store::encode(texts));
    while (true) {
      const auto flushed = stream_.flush();
      if (flushed.error != 0) server_call::throw_broken(flushed.error);
      std::array<pollfd, 2> wanted{};
      wanted[0] = {stream_.fd(), static_cast<short>(flushed.full ? POLLIN | POLLOUT : POLLIN), 0};
      wanted[1] = {stop, POLLIN, 0};  // a descriptor of -1 is skipped
      const auto left = std::min<std::chrono::milliseconds>(deadline.remaining(), kLongestPoll);
      const int ready = ::poll(wanted.data(), wanted.size(), static_cast<int>(left.count()));
      if (ready < 0 && errno != EINTR) throw_errno("poll", "", errno);
      if (wanted[1].revents != 0) server_call::throw_given_up();
      if (wanted[0].revents == 0) {
        if (deadline.expired()) throw Late{};
        continue;
      }
      const ssize_t n = stream_.read_some();
      if (n == 0) throw Broken{"the connection ended"};
      if (n < 0 && errno != EAGAIN && errno != EINTR) server_call::throw_broken(errno);
      const auto frame = stream_.next();
      if (!frame) continue;
      if (frame->wrong != nullptr) {
        throw IoError(std::string("the server is no meshstage store: it sent ") + frame->wrong);
      }
      auto got = tcp_store::decode(frame->payload);
      if (!got) throw Broken{"it sent a payload that is no list of texts"};
      return {static_cast<Type>(frame->type), std::move(*got)};
    }
  }

 private:
  framing::FrameStream stream_;
};

}  // namespace

class TcpStore::Impl {
 public:
  explicit Impl(TcpStoreOptions options)
      : options_(std::move(options)), server_{.address = "tcp://" + where(), .hint = hint()} {}

  /// The one way to the server. Throws Late at the deadline, and IoError when no server has
  /// answered for as long as the patience lasts.
  Texts ask(Type type, const Texts& texts, Deadline deadline, const std::stop_token& stop) {
    if (tcp_store::payload_bytes(texts) > tcp_store::kMaxPayload) {
      throw InvalidArgument("a request to " + address() + " has at most 16 MiB");
    }
    const server_call::StopSignal stopped(stop);
    return server_call::until_answered(
        server_, options_.patience, deadline, stop, [&](server_call::Patience& patience) {
          try {
            return attempt(type, texts, deadline, patience, stopped.descriptor());
          } catch (const Broken&) {
            idle_.clear();  // what broke one has likely broken them all
            throw;
          }
        });
  }
  /// The same for what is no wait: throws Timeout at the deadline.
  Texts ask(Type type, const Texts& texts, Deadline deadline) {
    return server_call::until_deadline(server_, [&] { return ask(type, texts, deadline, {}); });
  }

  void wait_reachable(Deadline deadline, const std::stop_token& stop,
                      const Store::Unanswered& unanswered) {
    const server_call::StopSignal stopped(stop);
    server_call::wait_until_answered(server_, deadline, stop, unanswered, [&] {
      try {
        idle_.give_back(connect(server_call::attempt_end(deadline), stopped.descriptor()));
      } catch (const Late&) {
        throw Broken{"it did not answer"};
      }
    });
  }

  [[nodiscard]] const std::string& address() const { return server_.address; }

 private:
  [[nodiscard]] std::string where() const {
    const bool colons = options_.host.find(':') != std::string::npos;
    return (colons ? "[" + options_.host + "]" : options_.host) + ":" + options_.port;
  }
  [[nodiscard]] std::string hint() const {
    return "is `meshstage store --listen " + where() + "` running there?";
  }

  Texts attempt(Type type, const Texts& texts, Deadline deadline, server_call::Patience& patience,
                int stop) {
    const Deadline end = patience.end();
    auto connection = idle_.take();
    if (!connection) connection = connect(end.earlier(deadline), stop);
    const bool waits = type == Type::kWait;
    if (waits) patience.answered();
    Reply reply;
    try {
      reply = connection->exchange(type, texts, waits ? deadline : end.earlier(deadline), stop);
    } catch (const Late&) {
      if (waits || deadline.expired()) throw;
      throw Broken{"it did not answer for " + std::to_string(patience.length().count()) + " ms"};
    }
    if (reply.type == Type::kRefusal) {
      throw IoError("the store at " + address() +
                    " refused: " + (reply.texts.empty() ? "" : reply.texts[0]));
    }
    idle_.give_back(std::move(connection));
    if (reply.type == Type::kAbsent) return {};
    return std::move(reply.texts);
  }

  std::unique_ptr<Connection> connect(Deadline deadline, int stop) {
    auto connection = std::make_unique<Connection>(
        server_call::connect(options_.host, options_.port, deadline, stop));
    Reply hello;
    try {
      hello = connection->exchange(Type::kHello, {}, deadline, stop);
    } catch (const Late&) {
      throw Broken{"it did not greet"};
    }
    // A port that nobody listens on may be given to this very connection, which then hears itself.
    if (hello.type == Type::kHello) throw Broken{"nobody listens there"};
    if (hello.type != Type::kValues || hello.texts.size() != 1) {
      throw IoError("the server at " + address() + " is no meshstage store");
    }
    const MutexLock lock(mutex_);
    if (instance_.empty()) instance_ = hello.texts[0];
    if (instance_ != hello.texts[0]) {
      throw IoError("the store at " + address() +
                    " was started anew and has lost its entries; start the job anew, too");
    }
    return connection;
  }

  const TcpStoreOptions options_;
  const server_call::Server server_;
  detail::LeasePool<Connection> idle_;
  Mutex mutex_;
  std::string instance_ MESHSTAGE_GUARDED_BY(mutex_);  // of the server that was met first
};

TcpStore::TcpStore(TcpStoreOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
TcpStore::~TcpStore() = default;

void TcpStore::set(const std::string& key, std::string_view value, Deadline deadline) {
  check_key(key);
  check_value(key, value, kMaxValue);
  (void)impl_->ask(Type::kSet, {key, std::string(value)}, deadline);
}

std::optional<std::string> TcpStore::get(const std::string& key, Deadline deadline) {
  check_key(key);
  auto values = impl_->ask(Type::kGet, {key}, deadline);
  if (values.empty()) return std::nullopt;
  return std::move(values[0]);
}

std::string TcpStore::compare_and_create(const std::string& key, std::string_view value,
                                         Deadline deadline) {
  check_key(key);
  check_value(key, value, kMaxValue);
  return impl_->ask(Type::kCreate, {key, std::string(value)}, deadline).at(0);
}

std::vector<std::string> TcpStore::list(const std::string& prefix, Deadline deadline) {
  return impl_->ask(Type::kList, {prefix}, deadline);
}

void TcpStore::remove(const std::string& key, Deadline deadline) {
  check_key(key);
  (void)impl_->ask(Type::kRemove, {key}, deadline);
}

std::string TcpStore::wait_for_any(std::span<const std::string> keys, Deadline deadline,
                                   std::stop_token stop) {
  for (const auto& key : keys) check_key(key);
  if (deadline.expired()) {  // one look, without waiting
    for (const auto& key : keys) {
      if (auto value = get(key, Deadline::never())) return std::move(*value);
    }
    throw_not_there(impl_->address(), keys);
  }
  try {
    return impl_->ask(Type::kWait, {keys.begin(), keys.end()}, deadline, stop).at(0);
  } catch (const Late& e) {
    throw_not_there(impl_->address(), keys, e.why);
  }
}

void TcpStore::wait_reachable(Deadline deadline, std::stop_token stop,
                              const Unanswered& unanswered) {
  impl_->wait_reachable(deadline, stop, unanswered);
}

}  // namespace meshstage
