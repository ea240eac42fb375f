#pragma once
#include <span>
#include <string_view>

#include <meshstage/core/identity/digest.hpp>
#include <meshstage/core/protocol/codec.hpp>

#include "tests/support/in_process_job.hpp"

namespace meshstage::test {

/// As the control messages of an InProcessJob's ranks have it.
inline protocol::WireContext wire_context(int world_size) {
  const std::string_view name = InProcessJob::kName;
  return {digest64(std::as_bytes(std::span(name))), world_size};
}

}  // namespace meshstage::test
