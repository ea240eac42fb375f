#pragma once
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/core/tree/key.hpp>

namespace meshstage {

/// Where a value stands in a tree: the keys from the root. Integers are integer keys of a Dict and
/// indices of a List or Tuple; strings are string keys of a Dict and names of a Node's children.
/// The attributes of a tensor are below a part of their own.
///
/// As text the parts are joined by dots: "model.h.0.weight". Escapes make the text unambiguous:
///   - in a string, '.', '%', control characters and bytes that are not UTF-8 become %XX (hex);
///   - a string that reads as an integer has its first byte escaped: "0" is "%30", 0 is "0";
///   - so has a string that begins with "__meshstage__" or is "__metadata__" (reserved in files);
///   - the empty string is "%_"; the attributes of a tensor are "%@".
class MESHSTAGE_API Path {
 public:
  Path() = default;
  Path(std::initializer_list<Key> keys) {
    for (const auto& k : keys) push(k);
  }

  void push(const Key& key) { push_text(escape(key)); }
  void push_attributes() { push_text("%@"); }
  void pop() {
    text_.resize(ends_.back());
    ends_.pop_back();
  }
  /// The number of keys; 0 for the root.
  [[nodiscard]] std::size_t depth() const noexcept { return ends_.size(); }
  /// Empty for the root.
  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  /// For messages: the text, or "(root)".
  [[nodiscard]] std::string shown() const { return ends_.empty() ? "(root)" : text_; }

  /// One part as text.
  [[nodiscard]] static std::string escape(const Key& key);
  /// The inverse of escape(). Throws InvalidArgument for text that escape() cannot have made.
  [[nodiscard]] static Key unescape(std::string_view part);
  [[nodiscard]] static bool is_attributes(std::string_view part) noexcept { return part == "%@"; }
  /// The parts of a text, still escaped.
  [[nodiscard]] static std::vector<std::string> split(std::string_view text);

 private:
  void push_text(std::string_view part) {
    ends_.push_back(text_.size());
    if (ends_.size() > 1) text_ += '.';
    text_ += part;
  }
  std::string text_;
  std::vector<std::size_t> ends_;
};

}  // namespace meshstage
