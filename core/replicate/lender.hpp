#pragma once
#include <map>

#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/streams.hpp>
#include <meshstage/core/replicate/verifier.hpp>

namespace meshstage::replicate {

/// Sends what this rank lends: a borrower that fetches its replica as its own image gets from here
/// what the replica borrows from this rank. The lender sends once it has both the protocol's word
/// (ServeLent) and the borrower's Want. (What this rank borrows arrives by the Inbox.)
/// Threads: the loop's.
class Lender {
 public:
  Lender(Engine& engine, Streams& streams, Verifier& verifier);

  void serve(const protocol::ServeLent& action);
  /// Throws CorruptData if that rank may borrow nothing from this one.
  void want(int from, exchange::Want want);
  /// A lender of this rank has other bytes: nothing is borrowed from it any more.
  void stop_borrowing(const protocol::StopBorrowing& action);
  /// The generation was left.
  void leave();

 private:
  void serve_if_asked(int to);

  Engine& engine_;
  Streams& streams_;
  Verifier& verifier_;
  std::map<int, exchange::Want> wants_;          ///< By sender, not yet served.
  std::map<int, protocol::ServeLent> to_serve_;  ///< By borrower, not yet served.
};

}  // namespace meshstage::replicate
