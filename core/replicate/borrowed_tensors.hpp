#pragma once
#include <functional>
#include <string>
#include <vector>

#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// The tensors that replicas leave out because another rank has them. All ranks must give the same.
///
/// A *borrower* leaves a tensor out of its replicas, at its holders, because a *lender* in another
/// failure domain has the same bytes in its own image at every step. A lost borrower gets the
/// tensor from its lender's image.
struct BorrowedTensors {
  /// lenders[r]: the ranks from which rank r may borrow; rank r makes links to them. Empty: no rank
  /// borrows.
  std::vector<std::vector<int>> lenders;
  /// Returns the paths of the tensors in `state` that `borrower` borrows from `lender`. Borrower
  /// and lender both call it, each with its own state, and must get the same answer. A borrower
  /// borrows each tensor from at most one lender. The trainer's thread calls it, for each new
  /// structure.
  std::function<std::vector<std::string>(const Value& state, int borrower, int lender)> paths;
};

}  // namespace meshstage
