#include <meshstage/core/comm/store.hpp>

#include <netdb.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <utility>

#include <meshstage/core/comm/redis/store.hpp>
#include <meshstage/core/comm/tcp_store/store.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

void Store::check_key(const std::string& key) {
  constexpr std::size_t kMaxKey = 1024;
  if (!key.empty() && key.size() <= kMaxKey && key.find('\0') == std::string::npos) return;
  throw InvalidArgument("a store key has 1 to 1024 bytes and no zero byte; this one has " +
                        std::to_string(key.size()) + ": \"" + key.substr(0, 64) + "\"");
}

void Store::check_value(const std::string& key, std::string_view value, std::size_t most) {
  if (value.size() <= most) return;
  throw InvalidArgument("the value of " + key + " has " + std::to_string(value.size()) +
                        " bytes; this store takes at most " + std::to_string(most));
}

void Store::throw_not_there(const std::string& where, std::span<const std::string> keys,
                            const std::string& why) {
  std::string text;
  for (const auto& key : keys) text += (text.empty() ? "" : ", ") + key;
  throw Timeout("not in the store " + where + " by the deadline: " + text +
                (why.empty() ? "" : "; " + why));
}

void Store::wait_reachable(Deadline /*deadline*/, std::stop_token /*stop*/,
                           const Unanswered& /*unanswered*/) {}

namespace {

/// "host:port" or "[::1]:port" in two; an empty port if there is none.
std::pair<std::string, std::string> host_and_port(std::string_view text) {
  std::size_t colon = text.rfind(':');
  std::string_view host = text.substr(0, colon);
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return {};
    host = text.substr(1, end - 1);
    colon = end + 1 < text.size() && text[end + 1] == ':' ? end + 1 : std::string_view::npos;
  }
  const auto port = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  return {std::string(host), std::string(port)};
}

/// Whether it may be a host's name or is an address. A name that means nothing yet may mean
/// something soon; one that cannot be a name never will. What looks like an address must be one.
bool can_be_host(const std::string& text) {
  const bool address = text.find(':') != std::string::npos ||
                       text.find_first_not_of("0123456789.") == std::string::npos;
  if (!address) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
      return (c < 0x80 && std::isalnum(c) != 0) || c == '-' || c == '.' || c == '_';
    });
  }
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST;
  addrinfo* found = nullptr;
  if (::getaddrinfo(text.c_str(), nullptr, &hints, &found) != 0) return false;
  ::freeaddrinfo(found);
  return true;
}

bool is_port(const std::string& text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && number > 0 && number < 65536;
}

std::shared_ptr<Store> open_tcp(std::string_view where) {
  auto [host, port] = host_and_port(where);
  if (!can_be_host(host) || !is_port(port)) return nullptr;
  return std::make_shared<TcpStore>(
      TcpStoreOptions{.host = std::move(host), .port = std::move(port)});
}

std::shared_ptr<Store> open_redis(std::string_view where) {
  RedisStoreOptions options;
  if (const auto at = where.rfind('@'); at != std::string_view::npos) {
    const auto who = where.substr(0, at);
    const auto colon = who.find(':');
    if (colon == std::string_view::npos) return nullptr;
    options.user = who.substr(0, colon);
    options.password = who.substr(colon + 1);
    where.remove_prefix(at + 1);
  }
  if (const auto slash = where.find('/'); slash != std::string_view::npos) {
    const auto number = where.substr(slash + 1);
    const auto [end, error] =
        std::from_chars(number.data(), number.data() + number.size(), options.database);
    if (error != std::errc() || end != number.data() + number.size() || options.database < 0) {
      return nullptr;
    }
    where = where.substr(0, slash);
  }
  auto [host, port] = host_and_port(where);
  if (!can_be_host(host) || (!port.empty() && !is_port(port))) return nullptr;
  options.host = std::move(host);
  if (!port.empty()) options.port = std::stoi(port);
  return make_redis_store(std::move(options));
}

}  // namespace

std::string without_password(const std::string& address) {
  const auto at = address.rfind('@');
  const auto host = address.find("://");
  if (at == std::string::npos || host == std::string::npos || at < host) return address;
  return address.substr(0, host + 3) + "..." + address.substr(at);
}

std::shared_ptr<Store> open_store(const std::string& address) {
  const auto after = [&](std::string_view scheme) -> std::optional<std::string_view> {
    if (!address.starts_with(scheme)) return std::nullopt;
    return std::string_view(address).substr(scheme.size());
  };
  const std::string_view path = after("file:").value_or(address);
  std::shared_ptr<Store> store;
  if (path.starts_with('/')) {
    store = std::make_shared<FileStore>(path);
  } else if (const auto tcp = after("tcp://")) {
    store = open_tcp(*tcp);
  } else if (const auto redis = after("redis://")) {
    store = open_redis(*redis);
  }
  if (store) return store;
  throw InvalidArgument("\"" + without_password(address) +
                        "\" names no store; supported: file:/path, or /path alone (a folder that "
                        "every rank sees), tcp://host:port (a `meshstage store`), "
                        "redis://[[user]:password@]host[:port][/database]");
}

}  // namespace meshstage
