#pragma once
#include <meshstage/core/comm/process_group.hpp>

namespace meshstage::detail {

/// The transfer of an empty message: complete from the start.
class EmptyTransfer final : public Transfer {
 public:
  void wait(Deadline /*deadline*/) override {}
};

}  // namespace meshstage::detail
