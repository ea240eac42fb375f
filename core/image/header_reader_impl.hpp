#pragma once
#include <cstdint>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include <meshstage/core/image/quoted.hpp>
#include <meshstage/core/image/safetensors.hpp>

/// The grammar of a safetensors header: which entries and which metadata its JSON has.
/// safetensors.cpp checks that they fit the file.
namespace meshstage::detail {

inline constexpr std::uint64_t kLengthBytes = 8;
inline constexpr std::string_view kMetadataKey = "__metadata__";
/// The most levels inside an unknown field of an entry. Unknown fields are ignored, as by serde,
/// but only up to this depth.
inline constexpr std::size_t kMaxDepth = 16;
// In the file a tensor of complex128 has one dimension more.
inline constexpr std::size_t kMaxDimensions = kMaxDims + 1;

/// Walks the text and stores how far it has come, so that errors can name the byte.
struct TextIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  const char* at;
  const char** reached;
  reference operator*() const { return *at; }
  TextIterator& operator++() {
    *reached = ++at;
    return *this;
  }
  friend bool operator==(const TextIterator& a, const TextIterator& b) { return a.at == b.at; }
};

/// Collects the entries while nlohmann's lexer and grammar walk the text. It builds nothing else,
/// so memory stays proportional to the header's length, and it refuses duplicates and deep nesting
/// while it reads.
class HeaderReader {
 public:
  using Json = nlohmann::json;

  /// `begin`: the text. While it is parsed, `*position()` is how far the lexer has come.
  explicit HeaderReader(const char* begin) : begin_(begin), at_(begin) {}
  [[nodiscard]] const char** position() { return &at_; }

  bool null() { return scalar("null", place_ == Place::kMetadataOrEntry && in_metadata_); }
  bool boolean(bool) { return scalar("true or false"); }
  bool number_integer(std::int64_t value) { return number(std::to_string(value), std::nullopt); }
  bool number_unsigned(std::uint64_t value) { return number(std::to_string(value), value); }
  bool number_float(double, const std::string& text) { return number(text, std::nullopt); }
  bool binary(Json::binary_t&) { return fail("binary data"); }

  bool string(std::string& value) {
    switch (place_) {
      case Place::kMetadata:
        metadata.emplace_back(std::move(key_), std::move(value));
        return true;
      case Place::kDtype:
        entry_.dtype = std::move(value);
        has_dtype_ = true;
        place_ = Place::kEntry;
        return true;
      default:
        return scalar("a string");
    }
  }

  bool start_object(std::size_t) {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kMetadataOrEntry:
        place_ = in_metadata_ ? Place::kMetadata : Place::kEntry;
        return true;
      case Place::kUnknown:
        return deeper();
      default:
        return fail("an object where " + expected() + " belongs");
    }
  }

  bool end_object() {
    switch (place_) {
      case Place::kUnknown:
        return shallower();
      case Place::kMetadata:
        place_ = Place::kTop;
        return true;
      case Place::kEntry:
        return end_entry();
      default:
        place_ = Place::kEnd;
        return true;
    }
  }

  bool start_array(std::size_t) {
    switch (place_) {
      case Place::kShapeStart:
        place_ = Place::kShape;
        return true;
      case Place::kOffsetsStart:
        place_ = Place::kOffsets;
        return true;
      case Place::kUnknown:
        return deeper();
      default:
        return fail("an array where " + expected() + " belongs");
    }
  }

  bool end_array() {
    switch (place_) {
      case Place::kUnknown:
        return shallower();
      case Place::kOffsets:
        if (offsets_ != 2)
          return fail("data_offsets has " + std::to_string(offsets_) + " numbers, not 2");
        [[fallthrough]];
      default:
        place_ = Place::kEntry;
        return true;
    }
  }

  bool key(std::string& name) {
    switch (place_) {
      case Place::kTop:
        if (!names_.insert(name).second) {
          tensor_ = name;
          return fail("the name occurs twice");
        }
        in_metadata_ = name == kMetadataKey;
        tensor_ = in_metadata_ ? "" : name;
        entry_ = {};
        entry_.name = std::move(name);
        has_dtype_ = has_shape_ = has_offsets_ = false;
        offsets_ = 0;
        fields_.clear();
        place_ = Place::kMetadataOrEntry;
        return true;
      case Place::kMetadata:
        if (!metadata_keys_.insert(name).second)
          return fail("metadata key " + in_quotes(name) + " occurs twice");
        key_ = std::move(name);
        return true;
      case Place::kEntry:
        return entry_key(name);
      default:
        return true;  // inside an unknown field
    }
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error ...": keep
    // the end.
    std::string text = e.what();
    if (const auto at = text.find("column "); at != std::string::npos) {
      if (const auto colon = text.find(": ", at); colon != std::string::npos)
        text.erase(0, colon + 2);
    }
    if (text.size() > 160) text.resize(160);
    return fail(std::move(text), position);
  }

  std::vector<SafetensorsEntry> entries;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::string problem;  // empty: none
  [[nodiscard]] const std::string& tensor() const { return tensor_; }

 private:
  enum class Place : std::uint8_t {
    kStart,
    kTop,
    kMetadataOrEntry,
    kMetadata,
    kEntry,
    kDtype,
    kShapeStart,
    kShape,
    kOffsetsStart,
    kOffsets,
    kUnknown,
    kEnd,
  };

  bool fail(std::string what) {
    return fail(std::move(what), static_cast<std::size_t>(at_ - begin_));
  }
  /// `position`: bytes of the text read so far; the last of them is the one that was wrong.
  bool fail(std::string what, std::size_t position) {
    const std::size_t wrong = kLengthBytes + (position == 0 ? 0 : position - 1);
    problem = std::move(what) + " (at byte " + std::to_string(wrong) + " of the file)";
    return false;
  }
  [[nodiscard]] std::string expected() const {
    switch (place_) {
      case Place::kStart:
        return "the header's object";
      case Place::kMetadataOrEntry:
        return in_metadata_ ? "the metadata's object" : "a tensor's object";
      case Place::kMetadata:
        return "a metadata string";
      case Place::kDtype:
        return "the dtype";
      case Place::kShapeStart:
        return "the shape";
      case Place::kShape:
        return "a dimension";
      case Place::kOffsetsStart:
        return "data_offsets";
      case Place::kOffsets:
        return "an offset";
      default:
        return "something else";
    }
  }
  bool scalar(const char* what, bool allowed = false) {
    if (place_ == Place::kUnknown) {
      if (depth_ == 0) place_ = Place::kEntry;
      return true;
    }
    if (!allowed) return fail(std::string(what) + " where " + expected() + " belongs");
    place_ = Place::kTop;
    return true;
  }
  bool number(const std::string& text, std::optional<std::uint64_t> value) {
    switch (place_) {
      case Place::kShape:
        if (!value)
          return fail("dimension " + text.substr(0, 40) + " is not a whole number below 2^64");
        if (entry_.shape.size() == kMaxDimensions)
          return fail("more than " + std::to_string(kMaxDimensions) + " dimensions");
        entry_.shape.push_back(*value);
        return true;
      case Place::kOffsets:
        if (!value)
          return fail("offset " + text.substr(0, 40) + " is not a whole number below 2^64");
        if (offsets_ < 2) (offsets_ == 0 ? entry_.begin : entry_.end) = *value;
        ++offsets_;
        return true;
      default:
        return scalar("a number");
    }
  }
  bool entry_key(const std::string& name) {
    if (name == "dtype") return field(has_dtype_, Place::kDtype, name);
    if (name == "shape") return field(has_shape_, Place::kShapeStart, name);
    if (name == "data_offsets") return field(has_offsets_, Place::kOffsetsStart, name);
    if (!fields_.insert(name).second) return fail("field " + in_quotes(name) + " occurs twice");
    place_ = Place::kUnknown;
    depth_ = 0;
    return true;
  }
  bool field(bool& seen, Place next, const std::string& name) {
    if (seen) return fail("field " + in_quotes(name) + " occurs twice");
    seen = true;
    place_ = next;
    return true;
  }
  bool deeper() {
    return ++depth_ < kMaxDepth || fail("nested deeper than " + std::to_string(kMaxDepth));
  }
  bool shallower() {
    if (--depth_ == 0) place_ = Place::kEntry;
    return true;
  }
  bool end_entry() {
    if (!has_dtype_) return fail("no dtype");
    if (!has_shape_) return fail("no shape");
    if (!has_offsets_) return fail("no data_offsets");
    entries.push_back(std::move(entry_));
    place_ = Place::kTop;
    return true;
  }

  const char* begin_;
  const char* at_;
  Place place_ = Place::kStart;
  bool in_metadata_ = false;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  std::size_t depth_ = 0;    // inside an unknown field
  std::size_t offsets_ = 0;  // numbers seen in data_offsets
  SafetensorsEntry entry_;
  std::string key_;
  std::string tensor_;  // the one being read
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> metadata_keys_;
  std::unordered_set<std::string> fields_;  // unknown ones of the entry
};

}  // namespace meshstage::detail
