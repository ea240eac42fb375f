#include <meshstage/mesh/toml_characters_impl.hpp>

namespace meshstage {
namespace {

// Where a character stands. Follows TOML as far as the text is TOML; behind the first error it may
// be wrong, but there the parser has stopped.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  // Takes the character at `i`, and those after it that belong to it; returns the next place.
  std::size_t step(std::size_t i) {
    const char c = text_[i];
    if (delimiter_ == 0) return outside(i);
    // Behind a backslash white space is skipped, or one character stands that cannot end the
    // string.
    const bool first_escaped = escape_ == Escape::kFirst;
    const bool space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (escape_ != Escape::kNone) escape_ = space ? Escape::kSpace : Escape::kNone;
    if (c == '\n' && !multi_line_) {  // a comment ends; in a string it is an error
      delimiter_ = 0;
      escape_ = Escape::kNone;
    } else if (first_escaped) {
      return i + 1;
    } else if (c == '\\' && delimiter_ == '"') {
      escape_ = Escape::kFirst;
    } else if (c == delimiter_ && delimiter_ != '#') {
      if (!multi_line_) {
        delimiter_ = 0;
      } else if (text_.substr(i, 3) == std::string(3, delimiter_)) {
        // Up to two more may stand before the three that end it.
        std::size_t end = i + 3;
        while (end < i + 5 && end < text_.size() && text_[end] == delimiter_) ++end;
        delimiter_ = 0;
        return end;
      }
    }
    return i + 1;
  }
  // In a string or a comment, where any character may stand that is not escaped.
  [[nodiscard]] bool quoted() const { return delimiter_ != 0 && escape_ == Escape::kNone; }

 private:
  std::size_t outside(std::size_t i) {
    const char c = text_[i];
    if (c != '"' && c != '\'' && c != '#') return i + 1;
    delimiter_ = c;
    multi_line_ = c != '#' && text_.substr(i, 3) == std::string(3, c);
    return i + (multi_line_ ? 3 : 1);
  }

  std::string_view text_;
  char delimiter_ = 0;  // of the string we are in, '#' in a comment, else 0
  bool multi_line_ = false;
  enum class Escape : unsigned char { kNone, kFirst, kSpace } escape_ = Escape::kNone;
};

}  // namespace

std::optional<MeshFileError> forbidden_character(std::string_view text) {
  Scanner scanner(text);
  MeshFileError where;
  where.line = 1;
  std::size_t line_start = 0;
  std::size_t i = text.substr(0, 3) == "\xef\xbb\xbf" ? 3 : 0;  // a byte order mark
  while (i < text.size()) {
    const bool quoted = scanner.quoted();
    const std::size_t next = scanner.step(i);
    for (; i < next; ++i) {
      const auto c = static_cast<unsigned char>(text[i]);
      const bool control = (c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7f;
      if (control || (c >= 0x80 && !quoted)) {
        where.column = static_cast<int>(i - line_start) + 1;
        where.message = control ? "this is not TOML: a control character"
                                : "this is not TOML: a character outside ASCII";
        where.fix = control ? "remove it" : "put it into a string or a comment";
        return where;
      }
      if (c == '\n') {
        ++where.line;
        line_start = i + 1;
      }
    }
  }
  return {};
}

}  // namespace meshstage
