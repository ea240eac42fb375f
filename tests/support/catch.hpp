// Includes Catch2, whichever version the distribution carries. Tests include this, never Catch2
// itself.
#pragma once
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
