#pragma once
#include <cstdint>
#include <iosfwd>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace meshstage::tools {

/// Writes one JSON value to a stream as it goes, so that an answer for a million ranks needs no
/// tree in memory. Commas are its business; that keys and values alternate is the caller's.
class JsonOut {
 public:
  explicit JsonOut(std::ostream& out) : out_(out) {}
  JsonOut(const JsonOut&) = delete;
  JsonOut& operator=(const JsonOut&) = delete;

  void begin_object() { begin('{'); }
  void end_object() { end('}'); }
  void begin_list() { begin('['); }
  void end_list() { end(']'); }
  JsonOut& key(std::string_view name);
  void value(std::int64_t number);
  void value(double number);
  void value(bool truth);
  void value(std::string_view text);
  void value(const char* text) { value(std::string_view(text)); }
  void null() { raw("null"); }
  void list(std::span<const std::int64_t> numbers);
  void list(std::span<const int> numbers);
  void list(std::span<const std::string> words);
  /// Text that is JSON already.
  void raw(std::string_view json);
  /// A newline, and everything goes to the stream.
  void finish();

 private:
  void begin(char bracket);
  void end(char bracket);
  void separate();
  void append(std::string_view text);

  std::ostream& out_;
  std::string buffer_;
  bool comma_ = false;  // a value stands before what comes next
};

void append_number(std::string& text, std::int64_t number);
/// "[0,1,2]" appended to `text`.
void append_list(std::string& text, std::span<const int> numbers);

}  // namespace meshstage::tools
