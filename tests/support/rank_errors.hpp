// What a rank of run_ranks() finds wrong, and what run_ranks() returns, checked.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/require.hpp"

namespace meshstage::test {

/// No rank threw.
inline void all_good(const std::vector<std::string>& errors) {
  for (std::size_t rank = 0; rank < errors.size(); ++rank) {
    INFO("rank " << rank);
    CHECK(errors[rank] == "");
  }
}

}  // namespace meshstage::test
