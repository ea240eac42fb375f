#pragma once
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/protocol/codec.hpp>

/// The parts that messages are made of, as bytes: numbers, texts, ids, sizes, claims. codec.cpp has
/// the messages.
namespace meshstage::protocol::wire {

/// Texts for people are cut to this, so that no error can make a message too long for its link.
inline constexpr std::size_t kMaxText = 4096;
/// Of a claim, without its two lists of loans.
inline constexpr std::size_t kClaimBytes = 4 + 4 + 1 + 1 + 4 + 16 + 16 + 44 + 16 + 8 + 4;
inline constexpr std::size_t kDigestBytes = 16;
inline constexpr std::size_t kLoanBytes = 4 + kDigestBytes;

/// Appends little-endian.
class Writer {
 public:
  template <class T>
  void number(T value) {
    little_endian::append(bytes_, value);
  }
  void rank(int value) { number(static_cast<std::int32_t>(value)); }
  void flag(bool value) { number(static_cast<std::uint8_t>(value ? 1 : 0)); }
  void count(std::size_t value) { number(static_cast<std::uint32_t>(value)); }
  void text(const std::string& value) {
    const std::size_t length = std::min(value.size(), kMaxText);
    count(length);
    for (std::size_t i = 0; i < length; ++i) bytes_.push_back(static_cast<std::byte>(value[i]));
  }
  /// Of any length and any bytes.
  void name(const std::string& value) {
    count(value.size());
    const auto bytes = std::as_bytes(std::span(value));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  void id(ImageId value) {
    number(value.generation);
    number(value.step);
  }
  void digest(const Digest& value) {
    number(value.low);
    number(value.high);
  }
  void sizes(const ImageSizes& value) {
    number(value.image_bytes);
    number(value.manifest_bytes);
    digest(value.manifest_digest);
    number(value.borrowed_bytes);
    number(value.loans);
  }
  void orders(const Orders& value) {
    flag(value.end);
    flag(value.persist);
  }
  void loans(const std::vector<Loan>& list) {
    count(list.size());
    for (const Loan& loan : list) {
      rank(loan.rank);
      digest(loan.digest);
    }
  }
  void claim(const Claim& value) {
    rank(value.at);
    rank(value.owner);
    number(static_cast<std::uint8_t>(value.place));
    number(static_cast<std::uint8_t>(value.slot));
    number(static_cast<std::uint32_t>(value.world_size));
    id(value.id);
    id(value.base);
    sizes(value.sizes);
    digest(value.image_digest);
    loans(value.borrowed);
    loans(value.lent);
    rank(value.vault);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

/// Reads what Writer wrote, from bytes that anybody may have written.
class Reader {
 public:
  Reader(const WireContext& context, int sender, std::span<const std::byte> bytes)
      : context_(context), sender_(sender), bytes_(bytes) {}

  void message_is(const char* name) { message_ = name; }

  [[noreturn]] void bad(const char* field, const std::string& what) const {
    throw make_error<CorruptData>("control message " + std::string(message_) + " from rank " +
                                      std::to_string(sender_) + ": " + field + ": " + what,
                                  sender_);
  }

  template <class T>
  T number(const char* field) {
    if (bytes_.size() < sizeof(T)) bad(field, "the message ends before it");
    const T value = little_endian::load<T>(bytes_.data());
    bytes_ = bytes_.subspan(sizeof(T));
    return value;
  }
  int rank(const char* field, bool may_be_none = false) {
    const auto value = number<std::int32_t>(field);
    if (value == -1 && may_be_none) return value;
    if (value < 0 || value >= context_.world_size) {
      bad(field, "rank " + std::to_string(value) + " is not in [0, " +
                     std::to_string(context_.world_size) + ")");
    }
    return value;
  }
  /// A byte that must be at most `most`.
  int small(const char* field, int most) {
    const int value = number<std::uint8_t>(field);
    if (value > most) bad(field, std::to_string(value) + " is above " + std::to_string(most));
    return value;
  }
  bool flag(const char* field) { return small(field, 1) == 1; }
  /// A count of things that take at least `each` bytes, so that it cannot ask for more memory than
  /// a small multiple of the message.
  std::size_t count(const char* field, std::size_t each) {
    const auto value = number<std::uint32_t>(field);
    if (value > bytes_.size() / each) {
      bad(field, std::to_string(value) + " of them do not fit the " +
                     std::to_string(bytes_.size()) + " bytes that follow");
    }
    return value;
  }
  std::string text(const char* field) {
    const std::string value = name(field);
    if (value.size() > kMaxText) {
      bad(field, std::to_string(value.size()) + " bytes are too long a text");
    }
    return value;
  }
  std::string name(const char* field) {
    const std::size_t length = count(field, 1);
    std::string value(length, '\0');
    if (length != 0) std::memcpy(value.data(), bytes_.data(), length);
    bytes_ = bytes_.subspan(length);
    return value;
  }
  /// An id; kNoImage only where that has a meaning.
  ImageId id(const char* field, bool may_be_none = false) {
    ImageId value;
    value.generation = number<std::uint64_t>(field);
    value.step = number<std::uint64_t>(field);
    if (value.generation == 0 && (!may_be_none || value.step != 0)) {
      bad(field, "no image has generation 0");
    }
    return value;
  }
  Digest digest(const char* field) {
    Digest value;
    value.low = number<std::uint64_t>(field);
    value.high = number<std::uint64_t>(field);
    return value;
  }
  ImageSizes sizes() {
    ImageSizes value;
    value.image_bytes = number<std::uint64_t>("image bytes");
    value.manifest_bytes = number<std::uint64_t>("manifest bytes");
    if (value.image_bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      bad("image bytes", std::to_string(value.image_bytes) + " is more than a file can hold");
    }
    if (value.manifest_bytes > value.image_bytes) {
      bad("manifest bytes", std::to_string(value.manifest_bytes) + " is more than the image's " +
                                std::to_string(value.image_bytes));
    }
    value.manifest_digest = digest("manifest digest");
    value.borrowed_bytes = number<std::uint64_t>("borrowed bytes");
    if (value.borrowed_bytes > value.image_bytes - value.manifest_bytes) {
      bad("borrowed bytes", std::to_string(value.borrowed_bytes) + " is more than the image has");
    }
    value.loans = number<std::uint32_t>("loans");
    return value;
  }
  Orders orders() {
    Orders value;
    value.end = flag("order to end");
    value.persist = flag("order to persist");
    return value;
  }
  Wishes wishes() {
    Wishes value;
    value.end = flag("wish to end");
    value.persist = flag("wish to persist");
    value.since_disk = number<std::uint64_t>("steps since one went to disk");
    return value;
  }
  std::vector<Loan> loans(const char* field) {
    std::vector<Loan> list;
    list.resize(count(field, kLoanBytes));
    for (Loan& loan : list) {
      // As a claim's owner: an image of a larger world is reported to the root.
      loan.rank = number<std::int32_t>(field);
      if (loan.rank < 0) bad(field, "rank " + std::to_string(loan.rank));
      loan.digest = digest(field);
    }
    return list;
  }
  Claim claim() {
    Claim value;
    value.at = rank("claim's place");
    // An image of a larger world is reported to the root, which names both sizes.
    value.owner = number<std::int32_t>("claim's owner");
    if (value.owner < 0) bad("claim's owner", "rank " + std::to_string(value.owner));
    value.place = static_cast<Place>(small("claim's kind", 5));
    value.slot = small("claim's slot", 1);
    const auto world = number<std::uint32_t>("claim's world size");
    if (world == 0 || world > static_cast<std::uint32_t>(std::numeric_limits<int>::max())) {
      bad("claim's world size", std::to_string(world));
    }
    value.world_size = static_cast<int>(world);
    if (value.owner >= value.world_size) {
      bad("claim's owner", "rank " + std::to_string(value.owner) + " of " + std::to_string(world));
    }
    value.id = id("claim's id");
    value.base = id("claim's base", true);
    if (value.base >= value.id) bad("claim's base", "not older than the image");
    value.sizes = sizes();
    value.image_digest = digest("claim's image digest");
    value.borrowed = loans("claim's lenders");
    value.lent = loans("claim's borrowers");
    value.vault = number<std::int32_t>("claim's vault");  // of the world that made the image
    if (value.vault < -1 || value.vault >= value.world_size ||
        is_left(value.place) != (value.vault >= 0)) {
      bad("claim's vault", "rank " + std::to_string(value.vault));
    }
    return value;
  }
  ErrorKind error_kind(const char* field) {
    return static_cast<ErrorKind>(small(field, static_cast<int>(ErrorKind::kFenced)));
  }
  void end() const {
    if (!bytes_.empty()) bad("length", std::to_string(bytes_.size()) + " bytes too many");
  }

 private:
  const WireContext& context_;
  int sender_;
  std::span<const std::byte> bytes_;
  const char* message_ = "header";
};

}  // namespace meshstage::protocol::wire
