#pragma once
#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <meshstage/core/comm/gloo/module_table_impl.hpp>
#include <meshstage/core/error/error.hpp>

/// What a rank puts into the Store for each peer of a group over Gloo.
namespace meshstage::gloo_address {

inline std::string hex(const std::vector<unsigned char>& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char b : bytes) {
    text += kDigits[b >> 4];
    text += kDigits[b & 15];
  }
  return text;
}

[[noreturn]] inline void throw_no_address(int peer) {
  throw make_error<CorruptData>(
      "the address of rank " + std::to_string(peer) + " in the store is no address", peer);
}

inline std::vector<unsigned char> from_hex(const std::string& text, int peer) {
  const auto digit = [&](char c) -> unsigned {
    if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a') + 10;
    throw_no_address(peer);
  };
  std::vector<unsigned char> bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(static_cast<unsigned char>(digit(text[i]) << 4 | digit(text[i + 1])));
  }
  return bytes;
}

/// As others find this rank: Gloo's address of the pair, then the nonce that it wants to be told.
struct Address {
  std::vector<unsigned char> bytes;
  gloo_module::Nonce nonce{};

  [[nodiscard]] std::string encode() const {
    return hex(bytes) + " " + hex({nonce.begin(), nonce.end()});
  }
  static Address decode(const std::string& text, int peer) {
    const auto space = text.find(' ');
    Address address;
    address.bytes = from_hex(text.substr(0, space), peer);
    const auto nonce = from_hex(space == std::string::npos ? "" : text.substr(space + 1), peer);
    if (address.bytes.empty() || nonce.size() != address.nonce.size()) throw_no_address(peer);
    std::copy(nonce.begin(), nonce.end(), address.nonce.begin());
    return address;
  }
};

inline std::vector<gloo_module::Nonce> random_nonces(std::size_t count) {
  std::random_device random;
  std::vector<gloo_module::Nonce> nonces(count);
  for (auto& nonce : nonces) {
    for (auto& byte : nonce) byte = static_cast<unsigned char>(random());
  }
  return nonces;
}

}  // namespace meshstage::gloo_address
