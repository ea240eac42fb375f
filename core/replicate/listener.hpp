#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/collective_progress.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/losses.hpp>
#include <meshstage/core/replicate/verifier.hpp>

namespace meshstage::replicate {

/// Brings messages and lost links of a generation to the loop. The handlers of the links only post;
/// on the loop the Listener decodes a message and feeds it as an event, or gives it to
/// CollectiveProgress.
/// Threads: the loop's.
class Listener {
 public:
  Listener(Engine& engine, Verifier& verifier, Losses& losses, CollectiveProgress& collectives)
      : engine_(engine), verifier_(verifier), losses_(losses), collectives_(collectives) {}

  /// From now on messages and losses of these links come to the loop. `bridge`: a goodbye is no
  /// loss, because the other rank closes a bridge when it has every image. Threads: any.
  void listen(ControlLinks& links, bool bridge);
  /// Has the bridges connected that a recovery needs, listens to them and feeds Connected. If that
  /// fails, the generation ends.
  void connect(const protocol::Connect& action);

 private:
  void hear(int from, std::span<const std::byte> received);
  void check_generation(const char* what, int from, std::uint64_t generation) const;

  Engine& engine_;
  Verifier& verifier_;
  Losses& losses_;
  CollectiveProgress& collectives_;
};

}  // namespace meshstage::replicate
