// What every ProcessGroup does. Call inside a TEST_CASE; it uses SECTIONs.
#pragma once
#include "tests/conformance/ranks.hpp"

namespace meshstage::testing {

void process_group_conforms(const TransportOf& transport);
/// The collectives against their definition, over groups of this transport.
void collectives_conform(const TransportOf& transport);

}  // namespace meshstage::testing
