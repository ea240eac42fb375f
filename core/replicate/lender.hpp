#pragma once
#include <map>

#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/streams.hpp>
#include <meshstage/core/replicate/verifier.hpp>

namespace meshstage::replicate {

/// Sends the bytes that this rank lends, to a borrower that fetches a replica as its own image. It
/// sends when it has both the protocol's action (ServeLent) and the borrower's Want. The bytes that
/// this rank itself borrows arrive at the Inbox.
/// Threads: the loop's.
class Lender {
 public:
  Lender(Engine& engine, Streams& streams, Verifier& verifier);

  void serve(const protocol::ServeLent& action);
  /// Called for a Want of rank `from`. Throws CorruptData if `from` may borrow nothing from this
  /// rank.
  void want(int from, exchange::Want want);
  /// Called when a lender of this rank has other bytes: this rank borrows nothing from that lender
  /// any more.
  void stop_borrowing(const protocol::StopBorrowing& action);
  /// Called when the generation was left.
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
