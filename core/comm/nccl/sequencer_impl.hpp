#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

namespace meshstage::nccl {

/// One call on a group, as its rank posts it.
enum class Call : std::uint8_t {
  kSend,
  kReceive,
  kBarrier,
  kBroadcast,
  kAllGather,
  kAllReduce,
  kReduceScatter
};
inline constexpr auto kLastCall = Call::kReduceScatter;

struct Post {
  std::uint64_t id = 0;  ///< The rank's own number for it.
  Call call = Call::kSend;
  std::uint8_t element = 0;
  std::uint8_t reduce = 0;
  std::int32_t peer = 0;  ///< Of a send or receive; the root of a broadcast.
  std::uint64_t tag = 0;
  std::uint64_t bytes = 0;
  friend bool operator==(const Post&, const Post&) = default;
};

enum class Verdict : std::uint8_t {
  kLaunch,      ///< Issue it now, behind all that came before.
  kOtherLength  ///< The two ends differ in length: it never happens.
};
struct Decision {
  int rank = 0;
  std::uint64_t id = 0;
  Verdict verdict = Verdict::kLaunch;
  friend bool operator==(const Decision&, const Decision&) = default;
};

/// Puts the calls of all ranks of a group into one order. It lives at rank 0, gets the posts of
/// every rank, and decides on a call when the last rank that takes part has posted it.
///
/// NCCL matches sends and receives by order, not by tag; an operation whose peer is late holds up
/// all that was issued behind it; and operations that two ranks issue in differing order wait for
/// each other for ever. So nothing is issued before every rank that takes part has posted it, and
/// every rank issues in the order of the decisions. Then each issued operation finds its peers
/// issuing the same one, and no two can wait for each other.
///
/// A pure function of the posts: no clock, no threads. Not for several threads at once.
class Sequencer {
 public:
  explicit Sequencer(int size) : collectives_(static_cast<std::size_t>(size)) {}
  /// The decisions that this post brings, in order. Sends and receives of one pair and tag are
  /// matched in the order in which they were posted; so are each rank's collectives.
  /// Throws InvalidState if two ranks called different collectives, and CorruptData for a rank or
  /// peer that does not exist.
  [[nodiscard]] std::vector<Decision> post(int rank, const Post& post);

 private:
  struct Pair {
    std::deque<Post> sends;
    std::deque<Post> receives;
  };
  [[nodiscard]] std::vector<Decision> match(int rank, const Post& post);
  [[nodiscard]] std::vector<Decision> gather(int rank, const Post& post);
  std::map<std::tuple<int, int, std::uint64_t>, Pair> pairs_;  // (from, to, tag), unmatched only
  std::vector<std::deque<Post>> collectives_;                  // by rank, undecided
};

/// What ranks tell rank 0 and it tells them, over the control links. A message is its type, one
/// byte, and the fields of the struct in their order, little-endian. The first message, kId, has
/// the version.
inline constexpr std::uint8_t kMessagesVersion = 1;
enum class MessageType : std::uint8_t { kId, kPost, kDecision, kAbort };

/// A rank's group has ended, and so must everyone's.
struct AbortNote {
  bool drain = false;      ///< The rank left in order: work that was issued may still end well.
  std::uint8_t kind = 0;   ///< An ErrorKind.
  std::int32_t rank = -1;  ///< The rank that the error is about; -1: none is known.
  std::string text;
};
/// The note by which other ranks learn of `cause`. An error that names a dead or silent rank stays
/// what it is; anything else is, for the others, the loss of this rank. Has no text if there is no
/// memory for one.
AbortNote note_of(const std::exception_ptr& cause, int own_rank) noexcept;
/// The error that a note says.
std::exception_ptr cause_of(const AbortNote& note) noexcept;

std::vector<std::byte> encode_id(std::span<const unsigned char> id);
std::vector<std::byte> encode(const Post& post);
std::vector<std::byte> encode(const Decision& decision);
std::vector<std::byte> encode(const AbortNote& note);
/// The decoders throw CorruptData; type_of() takes the first byte of any message.
MessageType type_of(std::span<const std::byte> message);
std::vector<unsigned char> decode_id(std::span<const std::byte> message);
Post decode_post(std::span<const std::byte> message);
Decision decode_decision(std::span<const std::byte> message);
AbortNote decode_abort(std::span<const std::byte> message);

}  // namespace meshstage::nccl
