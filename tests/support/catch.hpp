// Includes Catch2, whichever version the distribution carries. Tests include this, never Catch2
// itself.
#pragma once
#include <cstddef>
#include <string>
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
/// CHECK_THAT(text, contains_text("part")): Catch2 v2 and v3 name this differently.
inline auto contains_text(const std::string& part) {
  return Catch::Matchers::ContainsSubstring(part);
}
#else
#include <catch2/catch.hpp>
/// CHECK_THAT(text, contains_text("part")): Catch2 v2 and v3 name this differently.
inline auto contains_text(const std::string& part) { return Catch::Matchers::Contains(part); }
#endif

/// How often `text` says `part`.
inline std::size_t times_in(const std::string& text, const std::string& part) {
  std::size_t times = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++times;
  return times;
}
