#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <exception>
#include <list>
#include <map>
#include <random>
#include <utility>

#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/comm/socket/frame_stream_impl.hpp>
#include <meshstage/core/comm/store.hpp>
#include <meshstage/core/comm/tcp_store/server.hpp>
#include <meshstage/core/comm/tcp_store/wire_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

using net::Descriptor;
using tcp_store::Texts;
using tcp_store::Type;

/// A client that does not read what it asked for is dropped before this grows.
constexpr std::size_t kMaxOutput = std::size_t{64} << 20;
constexpr std::size_t kMaxWaitedKeys = 4096;
/// Of a frame before the hello. A hello has 4 bytes; a little more is heard, to say what is wrong.
constexpr std::size_t kHelloPayload = 256;

struct Client {
  framing::FrameStream stream;
  bool greeted = false;
  Deadline hello_by = Deadline::never();
  bool closing = false;  // was refused: goes once it has been told
  bool waits_for_room = false;
  Texts waits_for;  // keys
};

}  // namespace

class StoreServer::Impl {
 public:
  explicit Impl(StoreServerOptions options) : options_(std::move(options)) {
    std::random_device random;
    instance_ = std::to_string(std::uint64_t{random()} << 32 | random());
    epoll_ = Descriptor(::epoll_create1(EPOLL_CLOEXEC));
    wake_ = Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!epoll_.valid() || !wake_.valid()) throw_errno("epoll_create1, eventfd", "", errno);
    listener_ = net::listen_on(options_.host, std::to_string(options_.port));
    watch(wake_.get(), EPOLLIN, EPOLL_CTL_ADD);
    watch(listener_.get(), EPOLLIN, EPOLL_CTL_ADD);
    const std::string bound = net::address_of(listener_.get());
    const auto space = bound.find(' ');
    std::string host = bound.substr(0, space);
    if (host == "0.0.0.0" || host == "::") host = net::own_address_for_others();
    if (host.find(':') != std::string::npos) host = "[" + host + "]";
    address_ = "tcp://" + host + ":" + bound.substr(space + 1);
    thread_ = Thread("ms-store", [this] { run(); });
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    ending_ = true;
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
    thread_.join();
  }

  [[nodiscard]] const std::string& address() const noexcept { return address_; }
  [[nodiscard]] std::size_t connections() const { return count_; }

 private:
  void watch(int fd, std::uint32_t events, int operation) const {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    if (::epoll_ctl(epoll_.get(), operation, fd, &event) != 0) throw_errno("epoll_ctl", "", errno);
  }

  void run() {
    std::array<epoll_event, 64> events{};
    while (!ending_) {
      const int count =
          ::epoll_wait(epoll_.get(), events.data(), events.size(), milliseconds_to_next_end());
      for (int i = 0; i < count; ++i) {
        const auto& event = events[static_cast<std::size_t>(i)];
        if (event.data.fd == wake_.get()) continue;
        if (event.data.fd == listener_.get()) {
          accept_all();
        } else if (const auto c = clients_.find(event.data.fd); c != clients_.end()) {
          serve(c->first, c->second, event.events);
        }
      }
      while (!strangers_.empty()) {
        Client& oldest = clients_.at(strangers_.front());
        if (!oldest.hello_by.expired()) break;
        end(oldest);
      }
      // What was answered, also to those who waited for what another has set.
      for (const int fd : std::exchange(written_, {})) {
        const auto c = clients_.find(fd);
        if (c != clients_.end()) at_the_cost_of(c->second, [&] { flush(c->second); });
      }
      for (const int fd : std::exchange(gone_, {})) {
        if (const auto c = clients_.find(fd); c != clients_.end()) end(c->second);
      }
      count_ = clients_.size();
    }
  }

  [[nodiscard]] int milliseconds_to_next_end() const {
    if (strangers_.empty()) return -1;
    constexpr std::chrono::milliseconds kLongest{60'000};
    const auto left = clients_.at(strangers_.front()).hello_by.remaining();
    return static_cast<int>(std::min(left, kLongest).count());
  }

  /// What `call` throws (there is no memory, say) ends this one client, which asks again over
  /// another connection.
  template <class F>
  void at_the_cost_of(Client& client, F&& call) {
    try {
      call();
    } catch (const std::exception&) {
      end(client);
    }
  }

  void serve(int fd, Client& client, std::uint32_t events) {
    at_the_cost_of(client, [&] {
      if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
        read_from(fd, client);
      } else {
        written_.push_back(fd);
      }
    });
  }

  void accept_all() {
    while (true) {
      Descriptor fd = net::accept_from(listener_.get());
      if (!fd.valid()) {
        // Out of descriptors: the one that waits would wake this thread for ever. It is let in over
        // the spare one, and out again.
        if (errno == EMFILE || errno == ENFILE) {
          if (!strangers_.empty()) {
            end(clients_.at(strangers_.front()));
            continue;
          }
          spare_.reset();
          fd = net::accept_from(listener_.get());
          const bool one_less = fd.valid();
          fd.reset();
          spare_ = Descriptor(::eventfd(0, EFD_CLOEXEC));
          if (one_less) continue;
        }
        return;
      }
      if (clients_.size() >= options_.max_connections) continue;  // closed at once
      const int number = fd.get();
      try {
        let_in(std::move(fd));
      } catch (const std::exception&) {
        if (const auto c = clients_.find(number); c != clients_.end()) end(c->second);
      }
    }
  }

  void let_in(Descriptor fd) {
    const int number = fd.get();
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = number;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, number, &event) != 0) return;
    net::set_keep_alive(number);
    if (strangers_.size() >= options_.max_strangers) end(clients_.at(strangers_.front()));
    Client client;
    client.stream = {tcp_store::kFormat, std::move(fd)};
    client.stream.limit_payload(kHelloPayload);
    client.hello_by = Deadline::after(options_.hello_deadline);
    clients_.emplace(number, std::move(client));
    strangers_.push_back(number);
  }

  void read_from(int fd, Client& client) {
    const ssize_t n = client.stream.read_some();
    if (n <= 0) {
      if (n == 0 || (errno != EAGAIN && errno != EINTR)) gone_.push_back(fd);
      return;
    }
    if (client.closing) return client.stream.forget_input();
    while (!client.closing) {
      const auto frame = client.stream.next();
      if (!frame) return;
      if (frame->wrong != nullptr) {
        refuse(fd, client, std::string("this store was sent ") + frame->wrong);
      } else if (const auto texts = tcp_store::decode(frame->payload); !texts) {
        refuse(fd, client, "this store was sent a payload that is no list of texts");
      } else {
        take(fd, client, static_cast<Type>(frame->type), *texts);
      }
    }
  }

  void take(int fd, Client& client, Type type, const Texts& texts) {
    if (type == Type::kHello && texts.empty() && !client.greeted) {
      client.greeted = true;
      client.stream.lift_limit();
      strangers_.remove(fd);
      return answer(fd, client, Type::kValues, {instance_});
    }
    if (!client.greeted)
      return refuse(fd, client, "this store was sent a request before the hello");
    if (!client.waits_for.empty())
      return refuse(fd, client, "this store was sent a request while the connection waits");
    switch (type) {
      case Type::kSet:
        if (texts.size() != 2) break;
        if (write(fd, client, texts[0], texts[1], true)) answer(fd, client, Type::kValues, {});
        return;
      case Type::kCreate:
        if (texts.size() != 2) break;
        if (write(fd, client, texts[0], texts[1], false)) {
          answer(fd, client, Type::kValues, {entries_.at(texts[0])});
        }
        return;
      case Type::kGet:
        if (texts.size() != 1) break;
        if (const auto entry = entries_.find(texts[0]); entry != entries_.end()) {
          return answer(fd, client, Type::kValues, {entry->second});
        }
        return answer(fd, client, Type::kAbsent, {});
      case Type::kList:
        if (texts.size() != 1) break;
        return list(fd, client, texts[0]);
      case Type::kRemove:
        if (texts.size() != 1) break;
        if (const auto entry = entries_.find(texts[0]); entry != entries_.end()) {
          bytes_ -= entry->first.size() + entry->second.size();
          entries_.erase(entry);
        }
        return answer(fd, client, Type::kValues, {});
      case Type::kWait:
        if (texts.empty() || texts.size() > kMaxWaitedKeys) break;
        return wait(fd, client, texts);
      default:
        break;
    }
    refuse(fd, client, "this store was sent an invalid request");
  }

  /// False if it was refused.
  bool write(int fd, Client& client, const std::string& key, const std::string& value,
             bool replace) {
    try {
      Store::check_key(key);
    } catch (const InvalidArgument& e) {
      refuse(fd, client, e.what());
      return false;
    }
    const auto found = entries_.find(key);
    if (found != entries_.end() && !replace) return true;
    const std::size_t old = found == entries_.end() ? 0 : key.size() + found->second.size();
    if (bytes_ - old + key.size() + value.size() > options_.max_bytes) {
      refuse(fd, client,
             "this store is full: its entries may have " + std::to_string(options_.max_bytes) +
                 " bytes together");
      return false;
    }
    // Whatever there is no memory for is thrown before the entry is there: a client asks again.
    const auto waiting = waiting_.equal_range(key);
    std::vector<int> waiters;
    for (auto w = waiting.first; w != waiting.second; ++w) waiters.push_back(w->second);
    std::string copy = value;
    entries_[key] = std::move(copy);
    bytes_ += key.size() + value.size() - old;
    for (const int waiter : waiters) {
      const auto found_waiter = clients_.find(waiter);
      if (found_waiter == clients_.end() || found_waiter->second.waits_for.empty()) {
        continue;  // it named the key twice
      }
      Client& other = found_waiter->second;
      at_the_cost_of(other, [&] {
        stop_waiting(waiter, other);
        answer(waiter, other, Type::kValues, {value});
      });
    }
    return true;
  }

  void list(int fd, Client& client, const std::string& prefix) {
    Texts keys;
    std::size_t bytes = 4;
    for (auto entry = entries_.lower_bound(prefix);
         entry != entries_.end() && entry->first.starts_with(prefix); ++entry) {
      bytes += 4 + entry->first.size();
      if (bytes > tcp_store::kMaxPayload) {
        return refuse(fd, client, "too many keys begin with \"" + prefix + "\" for one answer");
      }
      keys.push_back(entry->first);
    }
    answer(fd, client, Type::kValues, keys);
  }

  void wait(int fd, Client& client, const Texts& keys) {
    for (const auto& key : keys) {
      const auto entry = entries_.find(key);
      if (entry != entries_.end()) return answer(fd, client, Type::kValues, {entry->second});
    }
    client.waits_for = keys;
    for (const auto& key : keys) waiting_.emplace(key, fd);
  }
  void stop_waiting(int fd, Client& client) {
    for (const auto& key : std::exchange(client.waits_for, {})) {
      const auto range = waiting_.equal_range(key);
      for (auto w = range.first; w != range.second;) w = w->second == fd ? waiting_.erase(w) : ++w;
    }
  }

  void answer(int fd, Client& client, Type type, const Texts& texts) {
    if (client.closing) return;
    client.stream.queue(static_cast<std::uint16_t>(type), tcp_store::encode(texts));
    written_.push_back(fd);
    if (client.stream.output_bytes() > kMaxOutput) gone_.push_back(fd);
  }
  void refuse(int fd, Client& client, const std::string& why) {
    answer(fd, client, Type::kRefusal, {why});
    client.closing = true;
  }

  void flush(Client& client) {
    const int fd = client.stream.fd();
    const auto flushed = client.stream.flush();
    if (flushed.error != 0) return gone_.push_back(fd);
    if (client.closing && !client.stream.has_output()) ::shutdown(fd, SHUT_WR);
    if (flushed.full == client.waits_for_room) return;
    watch(fd, flushed.full ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    client.waits_for_room = flushed.full;
  }
  void end(Client& client) {
    const int fd = client.stream.fd();
    stop_waiting(fd, client);
    if (!client.greeted) strangers_.remove(fd);
    // The number may be the next client's.
    std::erase(written_, fd);
    std::erase(gone_, fd);
    count_ = clients_.size() - 1;  // a client that sees its end finds it counted
    // By name, for a child that was forked meanwhile holds it too.
    ::shutdown(fd, SHUT_RDWR);
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    clients_.erase(fd);
  }

  const StoreServerOptions options_;
  std::string instance_;
  std::string address_;
  Descriptor epoll_;
  Descriptor wake_;
  Descriptor listener_;
  Descriptor spare_{::eventfd(0, EFD_CLOEXEC)};
  std::atomic<bool> ending_{false};
  std::atomic<std::size_t> count_{0};
  // The thread's own from here.
  std::map<std::string, std::string> entries_;
  std::size_t bytes_ = 0;  // of entries_
  std::map<int, Client> clients_;
  std::list<int> strangers_;                 // have not said hello, the oldest first
  std::multimap<std::string, int> waiting_;  // key to descriptor
  std::vector<int> written_;                 // have something to send
  std::vector<int> gone_;                    // to be ended
  Thread thread_;
};

StoreServer::StoreServer(StoreServerOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
StoreServer::~StoreServer() = default;
const std::string& StoreServer::address() const noexcept { return impl_->address(); }
std::size_t StoreServer::connections() const { return impl_->connections(); }

}  // namespace meshstage
