#include <bit>

#include <meshstage/core/image/bytes.hpp>
#include <meshstage/core/image/values.hpp>

namespace meshstage::detail {
namespace {

enum class Tag : std::uint8_t {
  kNull = 0,
  kFalse = 1,
  kTrue = 2,
  kInt = 3,
  kDouble = 4,
  kString = 5,
  kBytes = 6
};

void put(std::vector<std::byte>& stream, Tag tag) { stream.push_back(static_cast<std::byte>(tag)); }

void put_number(std::vector<std::byte>& stream, std::uint64_t number) {
  const auto at = stream.size();
  stream.resize(at + 8);
  store(std::span(stream), at, number);
}

void put_run(std::vector<std::byte>& stream, std::span<const std::byte> run) {
  put_number(stream, run.size());
  stream.insert(stream.end(), run.begin(), run.end());
}

}  // namespace

void encode_scalar(std::vector<std::byte>& stream, const Value& scalar) {
  switch (scalar.kind()) {
    case ValueKind::kBool:
      put(stream, scalar.as<bool>() ? Tag::kTrue : Tag::kFalse);
      return;
    case ValueKind::kInt:
      put(stream, Tag::kInt);
      put_number(stream, static_cast<std::uint64_t>(scalar.as<std::int64_t>()));
      return;
    case ValueKind::kDouble:
      put(stream, Tag::kDouble);
      put_number(stream, std::bit_cast<std::uint64_t>(scalar.as<double>()));
      return;
    case ValueKind::kString:
      put(stream, Tag::kString);
      put_run(stream, std::as_bytes(std::span(scalar.as<std::string>())));
      return;
    case ValueKind::kBytes:
      put(stream, Tag::kBytes);
      put_run(stream, scalar.as<Bytes>());
      return;
    default:
      put(stream, Tag::kNull);
      return;
  }
}

ValuesReader::ValuesReader(std::span<const std::byte> entry) {
  const auto used = load<std::uint64_t>(entry, 0);
  if (used > entry.size() - 8) {
    throw CorruptData("the values entry says it uses " + std::to_string(used) + " of " +
                      std::to_string(entry.size() - 8) + " bytes");
  }
  stream_ = entry.subspan(8, used);
}

std::span<const std::byte> ValuesReader::take(std::uint64_t bytes) {
  if (bytes > stream_.size() - at_) {
    throw CorruptData("the values entry ends within a value, at byte " + std::to_string(at_) +
                      " of " + std::to_string(stream_.size()));
  }
  const auto run = stream_.subspan(at_, bytes);
  at_ += bytes;
  return run;
}

Value ValuesReader::next() {
  switch (static_cast<Tag>(take(1)[0])) {
    case Tag::kNull:
      return {};
    case Tag::kFalse:
      return false;
    case Tag::kTrue:
      return true;
    case Tag::kInt:
      return load<std::int64_t>(take(8), 0);
    case Tag::kDouble:
      return std::bit_cast<double>(load<std::uint64_t>(take(8), 0));
    case Tag::kString: {
      const auto run = take(load<std::uint64_t>(take(8), 0));
      return std::string(reinterpret_cast<const char*>(run.data()), run.size());
    }
    case Tag::kBytes: {
      const auto run = take(load<std::uint64_t>(take(8), 0));
      return Bytes(run.begin(), run.end());
    }
  }
  throw CorruptData("the values entry has an unknown kind of value at byte " +
                    std::to_string(at_ - 1));
}

void ValuesReader::finish() const {
  if (at_ != stream_.size()) {
    throw CorruptData("the values entry has " + std::to_string(stream_.size() - at_) +
                      " bytes more than the tree has values");
  }
}

}  // namespace meshstage::detail
