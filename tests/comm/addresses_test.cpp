// The address of this host that other hosts use.
#include <string>

#include <meshstage/core/comm/socket/net_impl.hpp>
#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

TEST_CASE("an address that only this host can use is named where another host is to reach it") {
  net::check_not_loopback("192.0.2.7");
  for (const char* host : {"127.0.0.1", "::1", "127.0.1.1"}) {
    INFO(host);
    CHECK_THROWS_WITH(net::check_not_loopback(host),
                      contains_text("means loopback") && contains_text("MESHSTAGE_HOST"));
  }
}
