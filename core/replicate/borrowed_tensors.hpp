#pragma once
#include <functional>
#include <string>
#include <vector>

#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// Which tensors replicas leave out because another rank has them. The same on all ranks.
///
/// A *borrower* leaves a tensor out of its replicas, at its holders, because a *lender* in another
/// failure domain has the same bytes in its own image at every step. A borrower that is lost gets
/// the tensor from there.
struct BorrowedTensors {
  /// lenders[r]: the ranks from which rank r may borrow. Links are made to them. Empty: nobody
  /// borrows.
  std::vector<std::vector<int>> lenders;
  /// The paths of the tensors in `state` that `borrower` borrows from `lender`. Both ranks ask,
  /// each with its own state, and must get the same answer; a borrower borrows each tensor from at
  /// most one lender. The trainer's thread asks, for each new structure.
  std::function<std::vector<std::string>(const Value& state, int borrower, int lender)> paths;
};

}  // namespace meshstage
