#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/image/header_reader_impl.hpp>
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

using detail::HeaderReader;
using detail::in_quotes;
using detail::kLengthBytes;
using detail::TextIterator;

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
      Magic{"{"sv, "JSON; of an index of a checkpoint in several files, read the files one by one"},
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
  const auto length = little_endian::load<std::uint64_t>(front.data());
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
