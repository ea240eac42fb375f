#include "tests/network/proxied_store.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <array>
#include <charconv>
#include <cstring>
#include <sstream>
#include <utility>

#include <meshstage/core/error/error.hpp>

#define XXH_INLINE_ALL
#include <meshstage/core/comm/socket/frame_impl.hpp>

namespace meshstage::testing {

namespace {

/// ".../net/<name>/<rest>": the rest's numbers, or nothing.
std::optional<std::pair<std::string, std::vector<int>>> address_key(const std::string& key) {
  const auto net = key.find("/net/");
  if (net == std::string::npos) return std::nullopt;
  std::istringstream parts(key.substr(net + 5));
  std::string name;
  std::getline(parts, name, '/');
  std::vector<int> ranks;
  for (std::string part; std::getline(parts, part, '/');) ranks.push_back(std::stoi(part));
  return std::pair(name, ranks);
}

/// Gloo's address in hex begins with a sockaddr.
sockaddr_in socket_address(const std::string& hex) {
  std::array<unsigned char, sizeof(sockaddr_in)> bytes{};
  for (std::size_t i = 0; i < bytes.size() && 2 * i + 2 <= hex.size(); ++i) {
    std::from_chars(hex.data() + 2 * i, hex.data() + 2 * i + 2, bytes[i], 16);
  }
  sockaddr_in address{};
  std::memcpy(&address, bytes.data(), sizeof(address));
  return address;
}

std::string with_port(std::string hex, std::uint16_t port) {
  constexpr char kDigits[] = "0123456789abcdef";
  const std::size_t at = 2 * offsetof(sockaddr_in, sin_port);
  for (int digit = 0; digit < 4; ++digit) {
    hex[at + static_cast<std::size_t>(digit)] = kDigits[(port >> (12 - 4 * digit)) & 15];
  }
  return hex;
}

std::string host_of(const sockaddr_in& address) {
  std::array<char, INET_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET, &address.sin_addr, text.data(), text.size());
  return text.data();
}

/// Changes one control message that passes whole, once.
std::function<void(bool, std::vector<std::byte>&)> meddling(const std::string& how) {
  using namespace framing;
  auto done = std::make_shared<bool>(false);
  auto held = std::make_shared<std::vector<std::byte>>();
  return [how, done, held](bool to_server, std::vector<std::byte>& piece) {
    if (*done || !to_server || piece.size() < kHeaderBytes) return;
    const auto type = little_endian::load<std::uint16_t>(piece.data() + 6);
    const std::size_t length = kHeaderBytes + little_endian::load<std::uint32_t>(piece.data() + 8);
    if (little_endian::load<std::uint32_t>(piece.data()) != link_wire::kFormat.magic ||
        length > piece.size() ||
        type != static_cast<std::uint16_t>(link_wire::FrameType::kMessage)) {
      return;
    }
    const auto end = piece.begin() + static_cast<std::ptrdiff_t>(length);
    if (how == "swap" && held->empty()) {
      held->assign(piece.begin(), end);  // behind the next one
      piece.erase(piece.begin(), end);
      return;
    }
    *done = true;
    if (how == "swap") piece.insert(end, held->begin(), held->end());
    if (how == "flip") piece[length - 1] ^= std::byte{1};
    if (how == "drop") piece.erase(piece.begin(), end);
    if (how == "repeat") {
      const std::vector<std::byte> again(piece.begin(), end);
      piece.insert(end, again.begin(), again.end());
    }
  };
}

}  // namespace

void ProxiedStore::before_call() {
  const std::lock_guard lock(mutex_);
  if (gone_) throw IoError("the store cannot be reached from a host that is gone");
}

void ProxiedStore::set(const std::string& key, std::string_view value, Deadline deadline) {
  {
    const std::lock_guard lock(mutex_);
    if (address_key(key)) own_[key] = value;
  }
  WrappedStore::set(key, value, deadline);
}

std::optional<std::string> ProxiedStore::get(const std::string& key, Deadline deadline) {
  auto value = WrappedStore::get(key, deadline);
  if (value) value = translated(key, std::move(*value));
  return value;
}

std::string ProxiedStore::wait_for_any(std::span<const std::string> keys, Deadline deadline,
                                       std::stop_token stop) {
  auto value = WrappedStore::wait_for_any(keys, deadline, std::move(stop));
  return keys.size() == 1 ? translated(keys[0], std::move(value)) : value;
}

std::string ProxiedStore::translated(const std::string& key, std::string value) {
  const auto address = address_key(key);
  if (!address) return value;
  const auto& [name, ranks] = *address;
  const std::lock_guard lock(mutex_);
  const auto known = translations_.find(key + "=" + value);
  if (known != translations_.end()) return known->second;
  std::string result = value;
  if (ranks.size() == 1) {
    std::istringstream parts(value);
    std::string host, port, nonce;
    parts >> host >> port >> nonce;
    const auto number = static_cast<std::uint16_t>(std::stoi(port));
    result = host + " " + std::to_string(proxy_to(ranks[0], host, number)) + " " + nonce;
  } else if (ranks.size() == 2 && ranks[1] == rank_) {
    // Of a Gloo pair the lower address listens, the other one connects: to a proxy whose port is
    // lower still, so that both ends see it as before.
    std::string reverse = key.substr(0, key.find("/net/")) + "/net/" + name + "/" +
                          std::to_string(rank_) + "/" + std::to_string(ranks[0]);
    const sockaddr_in theirs = socket_address(value);
    const sockaddr_in ours = socket_address(own_.at(reverse));
    if (theirs.sin_port < ours.sin_port) {
      result = with_port(
          value, proxy_below(ours.sin_port, ranks[0], host_of(theirs), ntohs(theirs.sin_port)));
    }
  }
  translations_[key + "=" + value] = result;
  return result;
}

std::uint16_t ProxiedStore::proxy_to(int peer, const std::string& host, std::uint16_t port) {
  passages_.push_back({peer, true, std::make_unique<TcpProxy>(host, port, wire_)});
  return passages_.back().proxy->port();
}

std::uint16_t ProxiedStore::proxy_below(std::uint16_t bound, int peer, const std::string& host,
                                        std::uint16_t port) {
  // Gloo compares ports as they lie in memory, the low byte first. Those with a high byte of this
  // range the system gives out to nobody, but proxies of other jobs may have them.
  for (unsigned low = 0; low < 0x100; ++low) {
    for (unsigned high = 0x28; high < 0x7f; ++high) {
      const std::uint16_t wanted = static_cast<std::uint16_t>(high << 8U | low);
      if (htons(wanted) >= bound) continue;
      try {
        passages_.push_back({peer, false, std::make_unique<TcpProxy>(host, port, wire_, wanted)});
        return wanted;
      } catch (const IoError&) {
        // another proxy has it
      }
    }
  }
  throw IoError("no port for a proxy is free");
}

void ProxiedStore::vanish(int peer) {
  const std::lock_guard lock(mutex_);
  if (peer == rank_) gone_ = true;
  for (auto& passage : passages_) {
    if (peer == rank_ || passage.peer == peer) passage.proxy->vanish();
  }
}

void ProxiedStore::slow(std::chrono::milliseconds delay, std::size_t bytes_per_second) {
  const std::lock_guard lock(mutex_);
  wire_.delay = delay;
  wire_.bytes_per_second = bytes_per_second;
  for (auto& passage : passages_) passage.proxy->set(wire_);
}

void ProxiedStore::meddle(int peer, const std::string& how) {
  const std::lock_guard lock(mutex_);
  Wire wire = wire_;
  wire.change = meddling(how);
  for (auto& passage : passages_) {
    if (passage.peer == peer && passage.links) passage.proxy->set(wire);
  }
}

}  // namespace meshstage::testing
