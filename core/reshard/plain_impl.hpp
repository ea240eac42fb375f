#pragma once
#include <optional>
#include <string>
#include <vector>

#include <meshstage/core/reshard/assembly.hpp>
#include <meshstage/core/reshard/assembly_impl.hpp>
#include <meshstage/core/reshard/index_impl.hpp>

namespace meshstage::detail {

/// What a rank of the new job gets of the plain values that the old ranks have at a path.
struct PlainRule {
  const std::string& path;
  PlainKind kind = PlainKind::kSame;
  const NewRank& new_rank;
  int old_ranks = 0;

  /// Of values that each rank has for itself `old` has this rank's alone. Throws StructureMismatch
  /// where a value is no scalar, where the values differ and the kind does not allow it, or where
  /// there is no sum of them.
  [[nodiscard]] Value scalar(const std::vector<OldValue>& old) const;
  /// The same for tensors, of which `old` may have all ranks'. Nothing: the rank keeps what it has.
  [[nodiscard]] std::optional<Tensor> tensor(const std::vector<OldValue>& old) const;
  /// Null if the old rank of the same number has none.
  [[nodiscard]] const OldValue* of_this_rank(const std::vector<OldValue>& old) const;

 private:
  /// Throws StructureMismatch unless every old rank has what is to be summed.
  void check_all_have_it(const std::vector<OldValue>& old) const;
  [[noreturn]] void differ(const OldValue& a, const OldValue& b) const;
};

}  // namespace meshstage::detail
