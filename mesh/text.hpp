#pragma once
#include <charconv>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

/// Helpers for messages and for reading text, used by this room's sources.
namespace meshstage::text {

/// "2,4": numbers with commas between; after `at_most` of them "...".
template <class T>
std::string list(std::span<const T> numbers, std::size_t at_most = 16) {
  std::string out;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (i > 0) out += ',';
    if (i == at_most) return out + "...";
    out += std::to_string(numbers[i]);
  }
  return out;
}
inline std::string list(std::span<const std::string> words, std::size_t at_most = 16) {
  std::string out;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (i > 0) out += ", ";
    if (i == at_most) return out + "...";
    out += words[i];
  }
  return out;
}

/// "1 rank", "2 ranks".
inline std::string count(std::int64_t n, std::string_view noun) {
  return std::to_string(n) + " " + std::string(noun) + (n == 1 ? "" : "s");
}

/// The message for a mesh with a rank that no host has.
inline std::string no_host(const std::string& mesh, int rank, int world_size) {
  return mesh + " has rank " + std::to_string(rank) + " but the hosts have 0.." +
         std::to_string(world_size - 1) + ": give every rank of the mesh a host";
}

inline std::string_view trimmed(std::string_view s) {
  constexpr std::string_view kSpace = " \t\r\n";
  const auto first = s.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return s.substr(first, s.find_last_not_of(kSpace) - first + 1);
}

/// `s` on one line: control characters become '?'.
inline std::string printable(std::string_view s) {
  std::string out(s);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

/// A user's input quoted for a message: short, on one line, printable.
inline std::string quoted(std::string_view s) {
  return "'" + printable(s.substr(0, 60)) + (s.size() > 60 ? "...'" : "'");
}

/// The whole text `s` as a decimal number, with a sign only where T has one.
template <class T>
std::optional<T> number(std::string_view s) {
  T value{};
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
  if (error != std::errc() || end != s.data() + s.size() || s.empty()) return {};
  return value;
}

/// Product of two numbers that are not negative; nothing if the product does not fit.
inline std::optional<std::int64_t> product(std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  if (__builtin_mul_overflow(a, b, &out)) return {};
  return out;
}

/// a / b, rounded up; no overflow for a >= 0, b > 0.
inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

}  // namespace meshstage::text
