#pragma once
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/replicate/asks.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/slots.hpp>
#include <meshstage/core/replicate/streams.hpp>
#include <meshstage/core/replicate/verifier.hpp>

namespace meshstage::replicate {

/// The images that this rank receives: its wards' replicas in a round, and the images that it
/// fetches in a recovery. The inbox makes a slot ready, receives the stream (for a fetched replica
/// also the lenders' bytes) and seals the image. Each image ends with one event: ReplicaSealed or
/// ReplicaFailed, Fetched or FetchFailed.
/// Threads: the loop's.
class Inbox {
 public:
  Inbox(Engine& engine, Slots& slots, Streams& streams, Verifier& verifier);

  void accept(const protocol::AcceptReplica& action);
  void expect(const protocol::ExpectDigest& action);
  void abort(const protocol::AbortRound& action);
  /// Called when a step is complete: steps up to `id` are over.
  void complete(ImageId id);
  /// `here`: where the image lies if this rank itself is its source.
  void fetch(const protocol::Fetch& action, std::optional<Verifier::Here> here);
  /// Called for the StreamStart of rank `from`, whose image's pieces follow.
  void stream(int from, const exchange::StreamStart& start);
  /// Called when the recovery is over: nothing more is fetched.
  void established();
  /// Called when the generation was left.
  void leave();

 private:
  /// One image on its way here.
  struct Incoming {
    int from = -1;   ///< The rank that sends it; this rank if it comes from disk.
    int owner = -1;  ///< The rank whose image it is.
    ImageId id, base;
    protocol::ImageSizes sizes;
    bool fetch = false;
    bool with_manifest = true;
    bool streaming = false;    ///< Its stream began, so every piece is taken.
    bool sealing = false;      ///< It is proven and is being sealed.
    bool in_parts = false;     ///< A fetched replica that borrows bytes.
    std::vector<int> lenders;  ///< The lenders that the recovery's choice names.
    std::map<int, std::vector<ImageRange>> missing;  ///< By lender: ranges that have not come.
    SlotKey slot;
    WriteLease lease;
    /// A ward's replica: which of its blocks the slot holds; from the stream's begin on the
    /// receiving thread's, until it has arrived.
    std::shared_ptr<transfer::Holding> holding;
    std::optional<Digest> expected;    ///< The owner's digest; known from the start for a fetch.
    std::optional<ImageInfo> arrived;  ///< Set when the stream arrived and all digests were right.
    std::string not_whole;             ///< Why they were wrong, before the owner's digest is known.
  };

  [[nodiscard]] Incoming* find(int owner, ImageId id);
  std::map<int, Incoming>::iterator forget(std::map<int, Incoming>::iterator it);
  void begin(const protocol::AcceptReplica& action, WriteLease lease, transfer::HeldBlocks held);
  void take_starts(int from);
  void begin_stream(int from, const exchange::StreamStart& start);
  void receive_lent(Incoming& in, int from, const exchange::StreamStart& start);
  void ask_lenders(int owner, ImageId id);
  void lent_arrived(int from, int owner, ImageId id);
  void arrived(int owner, ImageId id, const ImageInfo& info);
  void seal_if_proven(Incoming& in);
  void sealed(int owner, ImageId id);
  void not_proven(int owner, ImageId id, ErrorKind kind, const std::string& why);
  void not_arrived(int owner, ImageId id, ErrorKind kind, const std::string& why);
  [[nodiscard]] Streams::Failed failing(int owner, ImageId id);

  Engine& engine_;
  Slots& slots_;
  Streams& streams_;
  Verifier& verifier_;
  Asks asks_;
  std::map<int, Incoming> incoming_;  ///< By owner.
  std::map<int, std::pair<ImageId, Digest>>
      announced_;  ///< By ward: digests that came before the accept.
  std::map<int, std::deque<exchange::StreamStart>>
      starts_;                 ///< By sender: stream starts not yet taken.
  std::set<int> refused_;      ///< Owners for whose image there was no room.
  std::set<ImageId> aborted_;  ///< Failed steps of this generation that were still being written.
};

}  // namespace meshstage::replicate
