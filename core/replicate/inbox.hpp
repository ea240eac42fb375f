#pragma once
#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
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

/// The images that this rank receives: its wards' replicas in a round, what it fetches in a
/// recovery. From the slot that is made ready, over the stream (and what lenders add to a fetched
/// replica), to the sealed image. Each ends with one event: ReplicaSealed or ReplicaFailed, Fetched
/// or FetchFailed.
/// Threads: the loop's.
class Inbox {
 public:
  Inbox(Engine& engine, Slots& slots, Streams& streams, Verifier& verifier);

  void accept(const protocol::AcceptReplica& action);
  void expect(const protocol::ExpectDigest& action);
  void abort(const protocol::AbortRound& action);
  /// Steps up to that one are over.
  void complete(ImageId id);
  /// `file`: where the image lies if its source is a file of this rank.
  void fetch(const protocol::Fetch& action, std::optional<std::filesystem::path> file);
  /// A rank is about to send an image.
  void stream(int from, const exchange::StreamStart& start);
  /// The recovery is over: nothing more is fetched.
  void established();
  /// The generation was left.
  void leave();

 private:
  /// One image on its way here.
  struct Incoming {
    int from = -1;   ///< The rank that sends it; this rank: from its disk.
    int owner = -1;  ///< The rank whose image it is.
    ImageId id, base;
    protocol::ImageSizes sizes;
    bool fetch = false;
    bool with_manifest = true;
    bool streaming = false;    ///< Its stream began; from here every piece is taken.
    bool sealing = false;      ///< It is proven, and being sealed.
    bool in_parts = false;     ///< A fetched replica that borrows.
    std::vector<int> lenders;  ///< Of it, ascending, by what all agreed on.
    std::map<int, std::vector<ImageRange>> missing;  ///< By lender: what is not here yet.
    WriteLease lease;
    std::optional<Digest> expected;  ///< As announced by the owner; a fetch has it from the start.
    std::optional<ImageInfo> arrived;  ///< All digests were right.
  };

  [[nodiscard]] Incoming* find(int owner, ImageId id);
  std::map<int, Incoming>::iterator forget(std::map<int, Incoming>::iterator it);
  void begin(const protocol::AcceptReplica& action, WriteLease lease);
  void take_starts(int from);
  void begin_stream(int from, const exchange::StreamStart& start);
  void receive_lent(Incoming& in, int from, const exchange::StreamStart& start);
  void ask_lenders(int owner, ImageId id);
  void lent_arrived(int from, int owner, ImageId id);
  void arrived(int owner, ImageId id, const ImageInfo& info);
  void seal_if_proven(Incoming& in);
  void sealed(int owner, ImageId id);
  void not_arrived(int owner, ImageId id, ErrorKind kind, const std::string& why);
  [[nodiscard]] Streams::Failed failing(int owner, ImageId id);

  Engine& engine_;
  Slots& slots_;
  Streams& streams_;
  Verifier& verifier_;
  Asks asks_;
  std::map<int, Incoming> incoming_;                         ///< By owner.
  std::map<int, std::pair<ImageId, Digest>> announced_;      ///< By ward, before it was accepted.
  std::map<int, std::deque<exchange::StreamStart>> starts_;  ///< By sender, not yet taken.
  std::set<int> refused_;      ///< Owners whose image found no room here.
  std::set<ImageId> aborted_;  ///< Failed steps of this generation that were still being written.
};

}  // namespace meshstage::replicate
