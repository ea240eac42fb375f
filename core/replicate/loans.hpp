#pragma once
#include <map>

#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/streams.hpp>
#include <meshstage/core/replicate/verifier.hpp>

namespace meshstage::replicate {

/// What this rank lends: a rank that fetches its replica as its own image gets from here what the
/// replica leaves out on this rank's account. Two things must have come: the protocol's word that
/// it is to be served, and its Want. (What this rank borrows arrives by the Inbox.)
/// Threads: the loop's.
class Loans {
 public:
  Loans(Engine& engine, Streams& streams, Verifier& verifier);

  void serve(const protocol::ServeCommon& action);
  /// Throws CorruptData if that rank may want nothing.
  void want(int from, exchange::Want want);
  /// That rank has other bytes than this one: nothing is left out on its account any more.
  void stop_sharing(const protocol::StopSharing& action);
  /// The generation was left.
  void leave();

 private:
  void serve_if_asked(int to);

  Engine& engine_;
  Streams& streams_;
  Verifier& verifier_;
  std::map<int, exchange::Want> wants_;            ///< By sender, not yet served.
  std::map<int, protocol::ServeCommon> to_serve_;  ///< By borrower, not yet served.
};

}  // namespace meshstage::replicate
