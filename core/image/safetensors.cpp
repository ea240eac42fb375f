#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/quoted.hpp>
#include <meshstage/core/image/safetensors.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <unordered_set>

namespace meshstage {

namespace {

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";
/// What may stand inside an unknown field of an entry; serde ignores those, so do we, but not for
/// ever.
constexpr std::size_t kMaxDepth = 16;
// A tensor of complex128 has one more in the file.
constexpr std::size_t kMaxDimensions = kMaxDims + 1;

struct DtypeName {
  std::string_view name;
  unsigned bits;
};
constexpr std::array kDtypes{
    DtypeName{"BOOL", 8},        DtypeName{"U8", 8},      DtypeName{"I8", 8},
    DtypeName{"F8_E5M2", 8},     DtypeName{"F8_E4M3", 8}, DtypeName{"F8_E8M0", 8},
    DtypeName{"I16", 16},        DtypeName{"U16", 16},    DtypeName{"F16", 16},
    DtypeName{"BF16", 16},       DtypeName{"I32", 32},    DtypeName{"U32", 32},
    DtypeName{"F32", 32},        DtypeName{"F64", 64},    DtypeName{"I64", 64},
    DtypeName{"U64", 64},        DtypeName{"C64", 64},    DtypeName{"F4", 4},
    DtypeName{"F6_E2M3", 6},     DtypeName{"F6_E3M2", 6}, DtypeName{"F8_E4M3FNUZ", 8},
    DtypeName{"F8_E5M2FNUZ", 8},
};

using detail::in_quotes;

[[noreturn]] void refuse(const std::string& what) {
  throw CorruptData("not a sound safetensors file: " + what);
}

/// What a file that is no safetensors file is, by its first bytes; "" if they tell nothing.
std::string_view looks_like(std::span<const std::byte> front) {
  struct Magic {
    std::string_view begin, what;
  };
  using namespace std::literals;
  static constexpr std::array kMagics{
      Magic{"PK\x03\x04"sv, "a zip archive, as torch.save() writes"},
      Magic{"version https://git-lfs"sv,
            "the pointer of a file in large-file storage, not the file (git lfs pull)"},
      Magic{"<!doctype"sv, "a web page"},
      Magic{"<html"sv, "a web page"},
      Magic{"<?xml"sv, "an XML document"},
      Magic{"\x1f\x8b"sv, "a gzip file"},
      Magic{"\x28\xb5\x2f\xfd"sv, "a zstd file"},
      Magic{"\x89HDF"sv, "an HDF5 file"},
      Magic{"GGUF"sv, "a GGUF file"},
      Magic{"\x93NUMPY"sv, "a NumPy array"},
      Magic{"\x7f"
            "ELF"sv,
            "a program"},
      Magic{"{"sv, "JSON, perhaps the index of a checkpoint in several files"},
  };
  const std::string_view text(reinterpret_cast<const char*>(front.data()), front.size());
  // Pickles: protocol 2 to 5, then a tuple, dict, frame or module.
  if (text.size() > 2 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5)
    return "a pickle, as old versions of torch.save() write";
  const auto begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return "";
  for (const auto& magic : kMagics) {
    const auto same = [](char a, char b) {
      return (a >= 'A' && a <= 'Z' ? a - 'A' + 'a' : a) ==
             (b >= 'A' && b <= 'Z' ? b - 'A' + 'a' : b);
    };
    const auto there = text.substr(begin, magic.begin.size());
    if (std::equal(there.begin(), there.end(), magic.begin.begin(), magic.begin.end(), same))
      return magic.what;
  }
  return "";
}

/// What is wrong with the header's length or begin: then it may be another kind of file.
[[noreturn]] void refuse_kind(std::span<const std::byte> front, const std::string& what) {
  const auto like = looks_like(front);
  refuse(like.empty() ? what : "it looks like " + std::string(like) + ": " + what);
}

[[noreturn]] void refuse_tensor(std::string_view name, const std::string& what) {
  throw make_error<CorruptData>(
      "not a sound safetensors file: tensor " + in_quotes(name) + ": " + what, {}, {},
      std::string(name));
}

/// Walks the text and says how far it is, so that errors can.
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

/// Collects the entries while nlohmann's lexer and grammar walk the text. Nothing is built for what
/// is not asked for, so memory follows the header's length; duplicates and depth are seen as they
/// come.
class HeaderReader {
 public:
  using Json = nlohmann::json;

  /// Reads `position()` while it parses: how far the lexer is.
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

/// Throws if the entry's dtype, shape and offsets disagree, or it leaves the data section.
void check_entry(const SafetensorsEntry& e, std::uint64_t data_bytes) {
  const std::string range = detail::range_text(e);
  if (!SafetensorsIndex::dtype_bits(e.dtype))
    refuse_tensor(e.name, range + ": unknown dtype " + in_quotes(e.dtype));
  if (e.begin > e.end) refuse_tensor(e.name, range + ": the end is before the begin");
  if (e.end > data_bytes) {
    refuse_tensor(e.name, range + " reach beyond its end at " + std::to_string(data_bytes));
  }
  const auto total = SafetensorsIndex::tensor_bits(e.dtype, e.shape);
  if (!total) refuse_tensor(e.name, range + ": the product of its dimensions does not fit 64 bits");
  if (*total % 8 != 0) refuse_tensor(e.name, range + ": its elements do not fill whole bytes");
  if (*total / 8 != e.end - e.begin) {
    refuse_tensor(e.name, range + " are " + std::to_string(e.end - e.begin) +
                              ", its dtype and shape need " + std::to_string(*total / 8));
  }
}

}  // namespace

std::optional<unsigned> SafetensorsIndex::dtype_bits(std::string_view dtype) noexcept {
  for (const auto& d : kDtypes) {
    if (d.name == dtype) return d.bits;
  }
  return std::nullopt;
}

std::optional<std::uint64_t> SafetensorsIndex::tensor_bits(
    std::string_view dtype, const std::vector<std::uint64_t>& shape) noexcept {
  const auto bits = dtype_bits(dtype);
  if (!bits) return std::nullopt;
  std::uint64_t total = 1;
  for (const std::uint64_t d : shape) {
    if (__builtin_mul_overflow(total, d, &total)) return std::nullopt;
  }
  if (__builtin_mul_overflow(total, std::uint64_t{*bits}, &total)) return std::nullopt;
  return total;
}

std::uint64_t SafetensorsIndex::read_data_begin(std::span<const std::byte> front,
                                                std::uint64_t file_bytes,
                                                const SafetensorsLimits& limits) {
  if (front.size() < kLengthBytes || file_bytes < kLengthBytes) {
    refuse_kind(front,
                "truncated: " + std::to_string(std::min<std::uint64_t>(front.size(), file_bytes)) +
                    " bytes, the length of the header alone has 8");
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    length |= std::to_integer<std::uint64_t>(front[i]) << (8 * i);
  }
  if (length > limits.max_header_bytes) {
    refuse_kind(front, "overlong header: byte 0 says " + std::to_string(length) +
                           " bytes, at most " + std::to_string(limits.max_header_bytes) +
                           " are read");
  }
  if (length > file_bytes - kLengthBytes) {
    refuse_kind(front, "truncated: byte 0 says the header has " + std::to_string(length) +
                           " bytes, the file has " + std::to_string(file_bytes) + " in all");
  }
  return kLengthBytes + length;
}

SafetensorsIndex SafetensorsIndex::parse(std::span<const std::byte> file,
                                         const SafetensorsLimits& limits) {
  return parse_front(file, file.size(), limits);
}

SafetensorsIndex SafetensorsIndex::parse_front(std::span<const std::byte> front,
                                               std::uint64_t file_bytes,
                                               const SafetensorsLimits& limits) {
  SafetensorsIndex index;
  index.data_begin_ = read_data_begin(front, file_bytes, limits);
  index.data_bytes_ = file_bytes - index.data_begin_;
  if (front.size() < index.data_begin_) {
    refuse("truncated: the header ends at byte " + std::to_string(index.data_begin_) +
           ", there are " + std::to_string(front.size()));
  }
  const auto text = front.subspan(kLengthBytes, index.data_begin_ - kLengthBytes);
  if (text.empty() || text.front() != std::byte{'{'})
    refuse_kind(front, "byte 8 is not the header's \"{\"");

  const char* const begin = reinterpret_cast<const char*>(text.data());
  // JSON has none, and the parser would take the first for the end of the text.
  if (const void* const zero = std::memchr(begin, 0, text.size()); zero != nullptr) {
    refuse("a byte of 0 in the header (at byte " +
           std::to_string(static_cast<const char*>(zero) - begin + 8) + " of the file)");
  }
  HeaderReader reader(begin);
  nlohmann::json::sax_parse(TextIterator{begin, reader.position()},
                            TextIterator{begin + text.size(), nullptr}, &reader);
  if (!reader.problem.empty()) {
    if (!reader.tensor().empty()) refuse_tensor(reader.tensor(), reader.problem);
    refuse(reader.problem);
  }

  index.entries_ = std::move(reader.entries);
  index.metadata_ = std::move(reader.metadata);
  for (const auto& e : index.entries_) check_entry(e, index.data_bytes_);
  std::sort(index.entries_.begin(), index.entries_.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  const SafetensorsEntry* last = nullptr;
  std::uint64_t covered = 0;
  for (const auto& e : index.entries_) {
    if (e.begin < covered) {
      refuse_tensor(e.name, "begins at byte " + std::to_string(e.begin) +
                                " of the data section, inside tensor " + in_quotes(last->name) +
                                ", which ends at " + std::to_string(covered));
    }
    if (e.begin > covered) {
      refuse_tensor(e.name, "begins at byte " + std::to_string(e.begin) +
                                " of the data section, after a hole from " +
                                std::to_string(covered));
    }
    covered = e.end;
    last = &e;
  }
  if (covered != index.data_bytes_) {
    const std::string what = "trailing bytes: the data section has " +
                             std::to_string(index.data_bytes_) + ", the last tensor ends at " +
                             std::to_string(covered);
    if (last != nullptr) refuse_tensor(last->name, what);
    refuse(what);
  }

  index.by_name_.resize(index.entries_.size());
  for (std::uint32_t i = 0; i < index.by_name_.size(); ++i) index.by_name_[i] = i;
  std::sort(index.by_name_.begin(), index.by_name_.end(), [&](std::uint32_t a, std::uint32_t b) {
    return index.entries_[a].name < index.entries_[b].name;
  });
  return index;
}

const SafetensorsEntry* SafetensorsIndex::find(std::string_view name) const noexcept {
  const auto at =
      std::lower_bound(by_name_.begin(), by_name_.end(), name,
                       [&](std::uint32_t i, std::string_view n) { return entries_[i].name < n; });
  return at != by_name_.end() && entries_[*at].name == name ? &entries_[*at] : nullptr;
}

std::optional<std::string_view> SafetensorsIndex::find_metadata(
    std::string_view key) const noexcept {
  for (const auto& [k, v] : metadata_) {
    if (k == key) return v;
  }
  return std::nullopt;
}

}  // namespace meshstage
