// hiredis writes and reads the protocol; the socket is ours, so that a call has a deadline, can be
// stopped, and raises no SIGPIPE.
#include <hiredis.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>
#include <type_traits>
#include <utility>

#include <meshstage/core/comm/lease_pool_impl.hpp>
#include <meshstage/core/comm/redis/store.hpp>
#include <meshstage/core/comm/server_call_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

using net::Descriptor;
using server_call::Broken;
using server_call::Late;
using Command = std::vector<std::string>;

constexpr std::size_t kMaxValue = std::size_t{1} << 20;
constexpr std::chrono::minutes kLongestPoll{10};

struct FreeReply {
  void operator()(redisReply* reply) const noexcept { ::freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;

std::string text_of(const redisReply& reply) { return {reply.str, reply.len}; }

/// The elements of an array; Broken if it is none or has fewer than `least`.
std::span<redisReply* const> elements(const redisReply& reply, std::size_t least) {
  if (reply.type != REDIS_REPLY_ARRAY || reply.elements < least) {
    throw Broken{"Redis sent an unexpected answer"};
  }
  return {reply.element, reply.elements};
}

class Connection {
 public:
  explicit Connection(Descriptor fd) : fd_(std::move(fd)), reader_(::redisReaderCreate()) {
    if (!reader_) throw OutOfMemory("no room for a reader of Redis' answers");
  }

  /// Sends all of them at once, returns the last one's reply. Throws Broken, Late, IoError if the
  /// server refuses one, Cancelled once `stop` is readable.
  Reply ask(const std::vector<Command>& commands, Deadline deadline, int stop) {
    std::string bytes;
    for (const auto& command : commands) bytes += formatted(command);
    send(bytes, deadline, stop);
    Reply reply;
    for (std::size_t i = 0; i < commands.size(); ++i) {
      reply = next(deadline, stop);
      check(*reply);
    }
    return reply;
  }
  /// What comes next.
  Reply next(Deadline deadline, int stop) {
    while (true) {
      void* reply = nullptr;
      if (::redisReaderGetReply(reader_.get(), &reply) != REDIS_OK) {
        throw IoError(std::string("what answers is no Redis: ") + reader_->errstr);
      }
      if (reply != nullptr) return Reply(static_cast<redisReply*>(reply));
      wait(POLLIN, deadline, stop);
      std::array<char, 16384> buffer;
      const ssize_t n = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
      if (n == 0) throw Broken{"the connection ended"};
      if (n < 0 && errno != EAGAIN && errno != EINTR) server_call::throw_broken(errno);
      if (n > 0 && ::redisReaderFeed(reader_.get(), buffer.data(), static_cast<std::size_t>(n)) !=
                       REDIS_OK) {
        throw IoError(std::string("what answers is no Redis: ") + reader_->errstr);
      }
    }
  }

 private:
  struct FreeReader {
    void operator()(redisReader* reader) const noexcept { ::redisReaderFree(reader); }
  };

  static std::string formatted(const Command& command) {
    std::vector<const char*> parts;
    std::vector<std::size_t> lengths;
    for (const auto& part : command) {
      parts.push_back(part.data());
      lengths.push_back(part.size());
    }
    char* text = nullptr;
    const auto length = ::redisFormatCommandArgv(&text, static_cast<int>(parts.size()),
                                                 parts.data(), lengths.data());
    if (length < 0) throw OutOfMemory("no room for a request to Redis");
    std::string result(text, static_cast<std::size_t>(length));
    ::redisFreeCommand(text);
    return result;
  }
  void send(std::string_view bytes, Deadline deadline, int stop) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n >= 0) {
        bytes.remove_prefix(static_cast<std::size_t>(n));
      } else if (errno == EAGAIN) {
        wait(POLLOUT, deadline, stop);
      } else if (errno != EINTR) {
        server_call::throw_broken(errno);
      }
    }
  }
  void wait(short events, Deadline deadline, int stop) const {
    while (true) {
      std::array<pollfd, 2> wanted{{{fd_.get(), events, 0}, {stop, POLLIN, 0}}};
      const auto left = std::min<std::chrono::milliseconds>(deadline.remaining(), kLongestPoll);
      if (::poll(wanted.data(), wanted.size(), static_cast<int>(left.count())) < 0 &&
          errno != EINTR) {
        throw_errno("poll", "", errno);
      }
      if (wanted[1].revents != 0) server_call::throw_given_up();
      if (wanted[0].revents != 0) return;
      if (deadline.expired()) throw Late{};
    }
  }
  /// Also of each part of a transaction.
  static void check(const redisReply& reply) {
    if (reply.type == REDIS_REPLY_ARRAY) {
      for (const redisReply* part : elements(reply, 0)) check(*part);
    }
    if (reply.type != REDIS_REPLY_ERROR) return;
    const std::string text = text_of(reply);
    if (text.starts_with("LOADING")) throw Broken{text};  // it has just started
    throw IoError("Redis refused: " + text);
  }

  Descriptor fd_;
  std::unique_ptr<redisReader, FreeReader> reader_;
};

class RedisStore final : public Store {
 public:
  explicit RedisStore(RedisStoreOptions options)
      : options_(std::move(options)),
        server_{.address = "redis://" + options_.host + ":" + std::to_string(options_.port) + "/" +
                           std::to_string(options_.database),
                .hint = "is a redis-server running there?"} {}

  void set(const std::string& key, std::string_view value, Deadline deadline) override {
    check_key(key);
    check_value(key, value, kMaxValue);
    (void)ask({{"MULTI"},
               {"SET", name_of(key), std::string(value)},
               {"PUBLISH", channel_of(key), ""},
               {"EXEC"}},
              deadline);
  }

  std::optional<std::string> get(const std::string& key, Deadline deadline) override {
    return server_call::until_deadline(server_, [&] { return look_up(key, deadline, {}); });
  }

  std::string compare_and_create(const std::string& key, std::string_view value,
                                 Deadline deadline) override {
    check_key(key);
    check_value(key, value, kMaxValue);
    const Reply reply = ask({{"MULTI"},
                             {"SET", name_of(key), std::string(value), "NX"},
                             {"GET", name_of(key)},
                             {"PUBLISH", channel_of(key), ""},
                             {"EXEC"}},
                            deadline);
    return text_of(*elements(*reply, 3)[1]);
  }

  std::vector<std::string> list(const std::string& prefix, Deadline deadline) override {
    const std::string pattern = escaped(name_of(prefix)) + "*";
    const std::size_t cut = name_of("").size();
    std::set<std::string> keys;  // a scan may name a key twice
    std::string cursor = "0";
    do {
      const Reply reply = ask({{"SCAN", cursor, "MATCH", pattern, "COUNT", "1000"}}, deadline);
      const auto parts = elements(*reply, 2);
      cursor = text_of(*parts[0]);
      for (const redisReply* name : elements(*parts[1], 0)) {
        keys.insert(text_of(*name).substr(cut));
      }
    } while (cursor != "0");
    return {keys.begin(), keys.end()};
  }

  void remove(const std::string& key, Deadline deadline) override {
    check_key(key);
    (void)ask({{"DEL", name_of(key)}}, deadline);
  }

  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop) override {
    for (const auto& key : keys) check_key(key);
    const auto look = [&](Deadline until) -> std::optional<std::string> {
      for (const auto& key : keys) {
        if (auto value = look_up(key, until, stop)) return value;
      }
      return std::nullopt;
    };
    const server_call::StopSignal stopped(stop);
    try {
      // One look, even if there is no time to wait.
      if (auto value = look(deadline.expired() ? Deadline::never() : deadline)) {
        return std::move(*value);
      }
      return retried(deadline, stop, [&](server_call::Patience& patience) {
        // A connection that listens can do nothing else; it ends with the wait.
        const auto listening = connect(patience.end().earlier(deadline), stopped.descriptor());
        Command subscribe{"SUBSCRIBE"};
        for (const auto& key : keys) subscribe.push_back(channel_of(key));
        (void)listening->ask({subscribe}, deadline, stopped.descriptor());
        patience.answered();
        while (true) {
          // What came before the server listened for us is there to be seen; what comes later is
          // announced. Answers to the subscription wake us, too, for nothing.
          if (auto value = look(deadline)) return std::move(*value);
          (void)listening->next(deadline, stopped.descriptor());
        }
      });
    } catch (const Late& e) {
      throw_not_there(server_.address, keys, e.why);
    }
  }

  void wait_reachable(Deadline deadline, std::stop_token stop,
                      const Unanswered& unanswered) override {
    const server_call::StopSignal stopped(stop);
    server_call::wait_until_answered(server_, deadline, stop, unanswered, [&] {
      try {
        idle_.give_back(connect(server_call::attempt_end(deadline), stopped.descriptor()));
      } catch (const Late&) {
        throw Broken{"it did not greet"};
      }
    });
  }

 private:
  /// Throws Late at the deadline, Cancelled at a stop.
  std::optional<std::string> look_up(const std::string& key, Deadline deadline,
                                     const std::stop_token& stop) {
    check_key(key);
    const Reply reply = ask_or_late({{"GET", name_of(key)}}, deadline, stop);
    if (reply->type == REDIS_REPLY_NIL) return std::nullopt;
    return text_of(*reply);
  }
  static std::string name_of(const std::string& key) { return "meshstage/" + key; }
  /// Channels are the server's, not the database's.
  [[nodiscard]] std::string channel_of(const std::string& key) const {
    return "meshstage/" + std::to_string(options_.database) + "/" + key;
  }
  static std::string escaped(const std::string& text) {
    std::string pattern;
    for (const char c : text) {
      if (c == '*' || c == '?' || c == '[' || c == ']' || c == '\\' || c == '^') pattern += '\\';
      pattern += c;
    }
    return pattern;
  }

  template <class F>
  std::invoke_result_t<F, server_call::Patience&> retried(Deadline deadline,
                                                          const std::stop_token& stop,
                                                          F&& attempt) {
    return server_call::until_answered(server_, options_.patience, deadline, stop,
                                       std::forward<F>(attempt));
  }
  /// Throws Timeout at the deadline.
  Reply ask(const std::vector<Command>& commands, Deadline deadline) {
    return server_call::until_deadline(server_,
                                       [&] { return ask_or_late(commands, deadline, {}); });
  }
  /// Throws Late at the deadline, Cancelled at a stop.
  Reply ask_or_late(const std::vector<Command>& commands, Deadline deadline,
                    const std::stop_token& stop) {
    const server_call::StopSignal stopped(stop);
    return retried(deadline, stop, [&](const server_call::Patience& patience) {
      const Deadline end = patience.end().earlier(deadline);
      auto connection = idle_.take();
      try {
        if (!connection) connection = connect(end, stopped.descriptor());
        Reply reply = connection->ask(commands, end, stopped.descriptor());
        idle_.give_back(std::move(connection));
        return reply;
      } catch (const Late&) {
        if (deadline.expired()) throw;
        throw Broken{"it did not answer for " + std::to_string(patience.length().count()) + " ms"};
      } catch (const Broken&) {
        idle_.clear();  // what broke one has likely broken them all
        throw;
      }
    });
  }
  std::unique_ptr<Connection> connect(Deadline deadline, int stop) {
    auto connection = std::make_unique<Connection>(
        server_call::connect(options_.host, std::to_string(options_.port), deadline, stop));
    std::vector<Command> greeting;
    if (!options_.password.empty()) {
      greeting.push_back(options_.user.empty() ? Command{"AUTH", options_.password}
                                               : Command{"AUTH", options_.user, options_.password});
    }
    greeting.push_back({"SELECT", std::to_string(options_.database)});
    (void)connection->ask(greeting, deadline, stop);
    return connection;
  }

  const RedisStoreOptions options_;
  const server_call::Server server_;
  detail::LeasePool<Connection> idle_;
};

}  // namespace

std::shared_ptr<Store> make_redis_store(RedisStoreOptions options) {
  return std::make_shared<RedisStore>(std::move(options));
}

std::string redis_client_version() {
  return "hiredis " + std::to_string(HIREDIS_MAJOR) + "." + std::to_string(HIREDIS_MINOR) + "." +
         std::to_string(HIREDIS_PATCH);
}

}  // namespace meshstage
