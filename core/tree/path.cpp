#include <charconv>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tree/path.hpp>

namespace meshstage {
namespace {

constexpr std::string_view kReservedPrefix = "__meshstage__";
constexpr std::string_view kMetadata = "__metadata__";
constexpr std::string_view kHex = "0123456789ABCDEF";

std::uint8_t byte_at(std::string_view s, std::size_t i) { return static_cast<std::uint8_t>(s[i]); }

// The text is the decimal form of some int64, as std::to_string writes it (or with a plus, zeros in
// front or too many digits: those are escaped too, which is harmless).
bool reads_as_integer(std::string_view s) {
  std::size_t i = (!s.empty() && (s[0] == '-' || s[0] == '+')) ? 1 : 0;
  if (i == s.size()) return false;
  for (; i < s.size(); ++i) {
    if (s[i] < '0' || s[i] > '9') return false;
  }
  return true;
}

// Length of the valid UTF-8 sequence at s[i], or 0.
std::size_t utf8_length(std::string_view s, std::size_t i) {
  const auto b = byte_at(s, i);
  const std::size_t n = b < 0x80                  ? 1
                        : (b >= 0xC2 && b < 0xE0) ? 2
                        : (b >= 0xE0 && b < 0xF0) ? 3
                        : (b >= 0xF0 && b < 0xF5) ? 4
                                                  : 0;
  if (n == 0 || i + n > s.size()) return 0;
  for (std::size_t k = 1; k < n; ++k) {
    if ((byte_at(s, i + k) & 0xC0) != 0x80) return 0;
  }
  if (n >= 3) {
    const auto c = byte_at(s, i + 1);
    // Overlong forms, surrogates and what lies above U+10FFFF.
    if ((b == 0xE0 && c < 0xA0) || (b == 0xED && c >= 0xA0) || (b == 0xF0 && c < 0x90) ||
        (b == 0xF4 && c >= 0x90))
      return 0;
  }
  return n;
}

void append_escaped(std::string& to, std::uint8_t b) {
  to += '%';
  to += kHex[b >> 4U];
  to += kHex[b & 15U];
}

int hex_value(char c) {
  const auto at = kHex.find(c);
  return at == std::string_view::npos ? -1 : static_cast<int>(at);
}

}  // namespace

std::string Path::escape(const Key& key) {
  if (!key.is_string()) return std::to_string(key.integer());
  const std::string_view s = key.string();
  if (s.empty()) return "%_";
  const bool first = reads_as_integer(s) || s.starts_with(kReservedPrefix) || s == kMetadata;
  std::string text;
  text.reserve(s.size());
  for (std::size_t i = 0; i < s.size();) {
    const auto b = byte_at(s, i);
    const auto n = utf8_length(s, i);
    if (n == 0 || (i == 0 && first) || b < 0x20 || b == 0x7F || b == '.' || b == '%') {
      append_escaped(text, b);
      ++i;
    } else {
      text.append(s, i, n);
      i += n;
    }
  }
  return text;
}

Key Path::unescape(std::string_view part) {
  const auto refuse = [&](const char* why) {
    throw InvalidArgument("\"" + std::string(part) + "\" is no part of a path: " + why);
  };
  if (part == "%_") return Key("");
  if (part.empty()) refuse("it is empty");
  if (reads_as_integer(part)) {
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    if (error != std::errc() || end != part.data() + part.size())
      refuse("the integer does not fit 64 bits");
    return Key(number);
  }
  std::string s;
  for (std::size_t i = 0; i < part.size(); ++i) {
    if (part[i] != '%') {
      s += part[i];
      continue;
    }
    if (i + 2 >= part.size() || hex_value(part[i + 1]) < 0 || hex_value(part[i + 2]) < 0)
      refuse("'%' without two hex digits (0-9, A-F)");
    s += static_cast<char>(hex_value(part[i + 1]) * 16 + hex_value(part[i + 2]));
    i += 2;
  }
  return Key(std::move(s));
}

std::vector<std::string> Path::split(std::string_view text) {
  std::vector<std::string> parts;
  if (text.empty()) return parts;
  for (;;) {
    const auto dot = text.find('.');
    parts.emplace_back(text.substr(0, dot));
    if (dot == std::string_view::npos) return parts;
    text.remove_prefix(dot + 1);
  }
}

}  // namespace meshstage
