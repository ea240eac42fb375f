#pragma once
#include <string>
#include <string_view>

#include <meshstage/core/image/safetensors.hpp>

namespace meshstage::detail {

/// Quotes a name that comes from a file for a message, on one line and shortened.
inline std::string in_quotes(std::string_view name) {
  constexpr std::size_t kShown = 120;
  std::string out = "\"";
  for (const char c : name.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte == 0x7f ? '?' : c;
  }
  out += name.size() > kShown ? "...\"" : "\"";
  return out;
}

/// The place of an entry's bytes, for a message.
inline std::string range_text(const SafetensorsEntry& entry) {
  return "bytes [" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) +
         ") of the data section";
}

}  // namespace meshstage::detail
