// What run_ranks() returns, checked.
#pragma once
#include <string>
#include <vector>

#include "tests/support/catch.hpp"

namespace meshstage::test {

/// No rank threw.
inline void all_good(const std::vector<std::string>& errors) {
  for (const auto& error : errors) CHECK(error == "");
}

}  // namespace meshstage::test
