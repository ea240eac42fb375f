// What a rank of run_ranks() finds wrong, and what run_ranks() returns, checked.
#pragma once
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"

namespace meshstage::test {

/// For a rank's thread, where Catch's own assertions may not be used: throws `otherwise`.
inline void require(bool holds, const std::string& otherwise) {
  if (!holds) throw InvalidState(otherwise);
}

/// No rank threw.
inline void all_good(const std::vector<std::string>& errors) {
  for (const auto& error : errors) CHECK(error == "");
}

}  // namespace meshstage::test
