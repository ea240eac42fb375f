#include "tools/trainer/report.hpp"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>

namespace trainer {
namespace {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else {
      out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out + '"';
}

}  // namespace

Line::Line(std::string_view what) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  text_ = "{\"what\":" + quoted(what) + ",\"at\":" +
          std::to_string(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

Line& Line::add(std::string_view name, std::uint64_t number) {
  text_ += "," + quoted(name) + ":" + std::to_string(number);
  return *this;
}

Line& Line::add(std::string_view name, int number) {
  text_ += "," + quoted(name) + ":" + std::to_string(number);
  return *this;
}

Line& Line::add(std::string_view name, double number) {
  std::array<char, 32> digits{};
  std::snprintf(digits.data(), digits.size(), "%.9g", number);
  text_ += "," + quoted(name) + ":" + (std::isfinite(number) ? digits.data() : "null");
  return *this;
}

Line& Line::add(std::string_view name, std::string_view text) {
  text_ += "," + quoted(name) + ":" + quoted(text.substr(0, 2000));
  return *this;
}

void Report::send(const Line& line) const {
  if (descriptor_ < 0) return;
  const std::string text = line.text();
  std::string_view rest = text;
  while (!rest.empty()) {
    const ssize_t n = ::write(descriptor_, rest.data(), rest.size());
    if (n < 0 && errno != EINTR) return;
    if (n > 0) rest.remove_prefix(static_cast<std::size_t>(n));
  }
}

}  // namespace trainer
