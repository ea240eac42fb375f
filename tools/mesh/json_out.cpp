#include "tools/mesh/json_out.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>

namespace meshstage::tools {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 16;

}  // namespace

void append_number(std::string& text, std::int64_t number) {
  char digits[24];
  const auto end = std::to_chars(digits, digits + sizeof digits, number).ptr;
  text.append(digits, end);
}

void append_list(std::string& text, std::span<const int> numbers) {
  text += '[';
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (i > 0) text += ',';
    append_number(text, numbers[i]);
  }
  text += ']';
}

void JsonOut::append(std::string_view text) {
  if (buffer_.size() + text.size() > kBuffer) {
    out_.write(buffer_.data(), static_cast<std::streamsize>(buffer_.size()));
    buffer_.clear();
    if (text.size() > kBuffer) {
      out_.write(text.data(), static_cast<std::streamsize>(text.size()));
      return;
    }
  }
  buffer_ += text;
}

void JsonOut::separate() {
  if (comma_) append(",");
  comma_ = true;
}

void JsonOut::begin(char bracket) {
  separate();
  append({&bracket, 1});
  comma_ = false;
}

void JsonOut::end(char bracket) {
  append({&bracket, 1});
  comma_ = true;
}

JsonOut& JsonOut::key(std::string_view name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
  if (plain) {
    separate();
    append("\"");
    append(name);
    append("\":");
  } else {
    value(name);
    append(":");
  }
  comma_ = false;
  return *this;
}

void JsonOut::raw(std::string_view json) {
  separate();
  append(json);
}

void JsonOut::value(std::int64_t number) {
  separate();
  char digits[24];
  const auto end = std::to_chars(digits, digits + sizeof digits, number).ptr;
  append({digits, static_cast<std::size_t>(end - digits)});
}

void JsonOut::value(double number) {
  if (number == std::floor(number) && std::fabs(number) < 9007199254740992.0) {
    return value(static_cast<std::int64_t>(number));
  }
  raw(nlohmann::json(number).dump());
}

void JsonOut::value(bool truth) { raw(truth ? "true" : "false"); }

void JsonOut::value(std::string_view text) {
  raw(nlohmann::json(std::string(text))
          .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void JsonOut::list(std::span<const std::int64_t> numbers) {
  begin_list();
  for (const std::int64_t n : numbers) value(n);
  end_list();
}

void JsonOut::list(std::span<const int> numbers) {
  begin_list();
  for (const int n : numbers) value(std::int64_t{n});
  end_list();
}

void JsonOut::list(std::span<const std::string> words) {
  begin_list();
  for (const std::string& w : words) value(w);
  end_list();
}

void JsonOut::finish() {
  append("\n");
  out_.write(buffer_.data(), static_cast<std::streamsize>(buffer_.size()));
  buffer_.clear();
  comma_ = false;
}

}  // namespace meshstage::tools
