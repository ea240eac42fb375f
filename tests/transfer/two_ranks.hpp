#pragma once
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/transfer/pieces.hpp>

#include "tests/conformance/ranks.hpp"
#include "tests/support/several_transport.hpp"

namespace meshstage::transfer {

using End = std::function<void(Link& link)>;

/// The cases run over one connection, and in programs of their own over more (CMakeLists.txt).
#ifndef MESHSTAGE_TEST_CONNECTIONS
#define MESHSTAGE_TEST_CONNECTIONS 1
#endif
inline constexpr unsigned kConnections = MESHSTAGE_TEST_CONNECTIONS;

/// One end sends while the other receives. What each threw, the sender first.
inline std::vector<std::string> errors_between(const End& sender, const End& receiver) {
  InProcessFabric fabric;
  const auto groups = testing::make_groups(
      [&](int rank) {
        return std::make_shared<test::SeveralTransport>(fabric.attach(rank), kConnections);
      },
      2, testing::Linked::kAll);
  return testing::run_ranks(2, [&](int rank) {
    Link link{*groups[static_cast<std::size_t>(rank)], 1 - rank, 5, std::chrono::seconds(30), {}};
    (rank == 0 ? sender : receiver)(link);
  });
}

}  // namespace meshstage::transfer
