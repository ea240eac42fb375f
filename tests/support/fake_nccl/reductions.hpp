#pragma once
#include <nccl.h>

#include <vector>

#include <meshstage/core/comm/collectives.hpp>

#include "tests/support/fake_nccl/rendezvous.hpp"

namespace meshstage::fake_nccl {

bool find_element(ncclDataType_t type, collectives::Element* element);
std::size_t size_of(collectives::Element element);
/// The parts of all ranks, reduced.
Bytes reduced(std::vector<Bytes> parts, collectives::Element element, ncclRedOp_t op);

}  // namespace meshstage::fake_nccl
