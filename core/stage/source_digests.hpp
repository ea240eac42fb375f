#pragma once
#include <string>
#include <vector>

#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage::detail {

/// Digests of a staging's CPU tensors at one moment, to be compared with the tensors later. Tensors
/// on devices are not read.
class SourceDigests {
 public:
  SourceDigests(const Value& state, const StagingSource& source);
  /// Throws InvalidState, naming the first tensor whose bytes have changed.
  void check(const StagingSource& source) const;

 private:
  std::vector<std::string> paths_;  // both by the source's order of tensors
  std::vector<Digest> digests_;
};

}  // namespace meshstage::detail
