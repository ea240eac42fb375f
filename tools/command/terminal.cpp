#include "tools/command/terminal.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

namespace meshstage::tools {
namespace {

/// Bytes that continue a character take no column of their own.
bool begins_character(char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80; }

std::size_t columns_of(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), begins_character));
}

/// Where what follows the first line begins.
std::size_t indent_of(std::string_view line, std::size_t width) {
  const std::size_t first = std::min(line.find_first_not_of(' '), line.size());
  std::size_t indent = 0;
  std::size_t column = 0;
  for (std::size_t i = 0; i < line.size() && column <= width / 2; ++i) {
    const bool after_gap = i >= first + 2 && line[i - 1] == ' ' && line[i - 2] == ' ';
    if (after_gap && line[i] != ' ') indent = column;
    column += begins_character(line[i]) ? 1 : 0;
  }
  return indent > 0 ? indent : std::min(first + 2, width / 2);
}

}  // namespace

std::optional<std::size_t> terminal_width(int descriptor) {
  if (::isatty(descriptor) == 0) return std::nullopt;
  if (const char* text = std::getenv("COLUMNS"); text != nullptr) {
    std::size_t columns = 0;
    const char* const end = text + std::strlen(text);
    const auto [stopped, error] = std::from_chars(text, end, columns);
    if (error == std::errc() && stopped == end && columns > 0) return columns;
  }
  winsize size{};
  if (::ioctl(descriptor, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return std::nullopt;
  return size.ws_col;
}

std::string folded(std::string_view line, std::size_t width) {
  if (columns_of(line) <= width) return std::string(line);
  const std::string indent(indent_of(line, width), ' ');
  std::string out;
  std::size_t column = 0;
  bool has_word = false;  // on this line, beyond its indentation
  for (std::size_t i = 0; i < line.size();) {
    const std::size_t word = std::min(line.find_first_not_of(' ', i), line.size());
    const std::size_t end = std::min(line.find(' ', word), line.size());
    const std::size_t columns = columns_of(line.substr(word, end - word));
    if (word == line.size()) break;  // spaces at the end
    if (has_word && column + (word - i) + columns > width) {
      out += "\n" + indent;
      column = indent.size();
    } else {
      out.append(word - i, ' ');
      column += word - i;
    }
    out += line.substr(word, end - word);
    column += columns;
    has_word = true;
    i = end;
  }
  return out;
}

FoldingStream::FoldingStream(std::ostream& to, std::size_t width)
    : std::ostream(nullptr), buffer_(to, width) {
  rdbuf(&buffer_);
}

FoldingStream::~FoldingStream() { flush(); }

void FoldingStream::Buffer::write(std::string_view text) {
  if (!begun_ && !text.empty()) {
    begun_ = true;
    unchanged_ = std::string_view("{<#.").find(text.front()) != std::string_view::npos;
  }
  if (unchanged_) {
    to_ << text;
    return;
  }
  while (!text.empty()) {
    const auto end = text.find('\n');
    line_ += text.substr(0, end);
    if (end == std::string_view::npos) return;
    to_ << (partial_ ? line_ : folded(line_, width_)) << '\n';
    line_.clear();
    partial_ = false;
    text.remove_prefix(end + 1);
  }
}

FoldingStream::Buffer::int_type FoldingStream::Buffer::overflow(int_type c) {
  if (traits_type::eq_int_type(c, traits_type::eof())) return traits_type::not_eof(c);
  const char one = traits_type::to_char_type(c);
  write({&one, 1});
  return to_.good() ? c : traits_type::eof();
}

std::streamsize FoldingStream::Buffer::xsputn(const char* text, std::streamsize size) {
  write({text, static_cast<std::size_t>(size)});
  return to_.good() ? size : 0;
}

int FoldingStream::Buffer::sync() {
  to_ << line_;
  partial_ = partial_ || !line_.empty();
  line_.clear();
  return to_.flush() ? 0 : -1;
}

}  // namespace meshstage::tools
