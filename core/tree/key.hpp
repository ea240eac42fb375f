#pragma once
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <meshstage/core/error/error.hpp>

namespace meshstage {

/// A Dict's key: a string or a 64-bit integer ("1" and 1 are different keys).
class Key {
 public:
  Key(std::string text) : value_(std::move(text)) {}         // NOLINT(google-explicit-constructor)
  Key(std::string_view text) : value_(std::string(text)) {}  // NOLINT(google-explicit-constructor)
  Key(const char* text) : value_(std::string(text)) {}       // NOLINT(google-explicit-constructor)
  /// Throws InvalidArgument for an unsigned number above 2^63 - 1.
  template <std::integral I>
    requires(!std::same_as<I, bool>)
  Key(I number)
      : value_(static_cast<std::int64_t>(number)) {  // NOLINT(google-explicit-constructor)
    if (!std::in_range<std::int64_t>(number)) {
      throw InvalidArgument("a key of " + std::to_string(number) + " does not fit 64 signed bits");
    }
  }

  [[nodiscard]] bool is_string() const noexcept { return value_.index() == 0; }
  [[nodiscard]] const std::string& string() const { return std::get<std::string>(value_); }
  [[nodiscard]] std::int64_t integer() const { return std::get<std::int64_t>(value_); }
  friend bool operator==(const Key&, const Key&) = default;

 private:
  std::variant<std::string, std::int64_t> value_;
};

}  // namespace meshstage

template <>
struct std::hash<meshstage::Key> {
  std::size_t operator()(const meshstage::Key& key) const noexcept {
    return key.is_string() ? std::hash<std::string>{}(key.string())
                           : std::hash<std::int64_t>{}(key.integer()) * 0x9E3779B97F4A7C15U;
  }
};
