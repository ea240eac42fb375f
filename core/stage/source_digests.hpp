#pragma once
#include <string>
#include <vector>

#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/stage/staging_plan.hpp>

namespace meshstage::detail {

/// What the tensors of a staging hold at one moment, to be compared with what they hold later;
/// those on devices are not looked at.
class SourceDigests {
 public:
  SourceDigests(const Value& state, const StagingSource& source);
  /// Throws InvalidState, naming the first tensor that holds something else now.
  void check(const StagingSource& source) const;

 private:
  std::vector<std::string> paths_;  // both by the source's order of tensors
  std::vector<Digest> digests_;
};

}  // namespace meshstage::detail
