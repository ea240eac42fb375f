#include <meshstage/core/checkpoint/old_parts_impl.hpp>

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/error/ranks_text.hpp>

namespace meshstage::detail {
namespace {

constexpr std::size_t kWindow = 8;  // pieces on their way to a rank, and from one

void put(std::vector<std::byte>& bytes, std::uint64_t number) {
  bytes.resize(bytes.size() + 8);
  little_endian::store(bytes.data() + bytes.size() - 8, number);
}

/// Reads what put() wrote, and what lies between. Throws PeerLost, so that all ranks try again,
/// where that makes no sense.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}
  [[nodiscard]] bool empty() const noexcept { return left_.empty(); }
  std::uint64_t number() { return little_endian::load<std::uint64_t>(take(8).data()); }
  std::span<const std::byte> take(std::uint64_t bytes) {
    if (bytes > left_.size()) throw PeerLost("what a rank said of old images was cut");
    const auto taken = left_.first(bytes);
    left_ = left_.subspan(bytes);
    return taken;
  }

 private:
  std::span<const std::byte> left_;
};

/// Whether a link of the pairs was lost, and how. The links' thread writes, the trainer's reads.
class LostLink {
 public:
  void set(int peer, const std::string& how) {
    const MutexLock lock(mutex_);
    if (text_.empty()) text_ = "the connection to rank " + std::to_string(peer) + " ended: " + how;
  }
  void throw_if_lost() const {
    const MutexLock lock(mutex_);
    if (!text_.empty()) throw PeerLost(text_);
  }

 private:
  mutable Mutex mutex_;
  std::string text_ MESHSTAGE_GUARDED_BY(mutex_);
};

/// Transfers of one direction, of which the oldest is waited for.
class Window {
 public:
  Window(const OldFiles& files, const LostLink& lost) : files_(files), lost_(lost) {}
  void add(std::unique_ptr<Transfer> transfer) {
    transfers_.push_back(std::move(transfer));
    if (transfers_.size() > kWindow) wait();
  }
  void wait_all() {
    while (!transfers_.empty()) wait();
  }

 private:
  void wait() {
    // A rank that dies or is silent shows at its links; one that gives up ends the generation.
    constexpr std::chrono::milliseconds kLook(100);
    while (!transfers_.front()->done_by(Deadline::after(kLook))) {
      files_.throw_if_lost();
      lost_.throw_if_lost();
    }
    transfers_.pop_front();
  }
  const OldFiles& files_;
  const LostLink& lost_;
  std::deque<std::unique_ptr<Transfer>> transfers_;
};

}  // namespace

PartPlan::PartPlan(std::span<const std::vector<std::byte>> said, const OldWorldStep& step)
    : needs_(said.size()) {
  const auto old_ranks = static_cast<std::size_t>(step.world_size);
  have_.resize(old_ranks);
  std::set<int> nowhere;
  for (std::size_t old_rank = 0; old_rank < old_ranks; ++old_rank) {
    for (std::size_t rank = 0; rank < said.size(); ++rank) {
      if (said[rank].size() != old_ranks) {
        throw PeerLost("rank " + std::to_string(rank) + " did not say which old files it has");
      }
      if (said[rank][old_rank] != std::byte{0}) have_[old_rank].push_back(static_cast<int>(rank));
    }
    if (have_[old_rank].empty()) nowhere.insert(static_cast<int>(old_rank));
  }
  if (nowhere.empty()) return;
  throw PeerLost("no rank has a sound image of old rank " + ranks_text(nowhere) + " of " +
                 std::to_string(step.world_size) + " of " + to_string(step.id) + " any more");
}

int PartPlan::server(int old_rank, int to) const {
  const auto& have = have_.at(static_cast<std::size_t>(old_rank));
  return have[static_cast<std::size_t>(old_rank + to) % have.size()];
}

std::vector<std::byte> PartPlan::ends_of(const StepStates& old, int rank) const {
  std::vector<std::byte> told;
  for (std::size_t i = 0; i < have_.size(); ++i) {
    const int old_rank = static_cast<int>(i);
    if (have_[i].size() == needs_.size() || server(old_rank, 0) != rank) continue;
    if (!StepParts::has_file(old, old_rank)) {
      throw PeerLost("rank " + std::to_string(rank) + " is to send an image of old rank " +
                     std::to_string(old_rank) + ", and has none");
    }
    const auto ends = StepParts::ends(old, old_rank);
    put(told, i);
    put(told, ends.size());
    told.insert(told.end(), ends.begin(), ends.end());
  }
  return told;
}

void PartPlan::add_ends(StepStates& old, std::span<const std::vector<std::byte>> told) const {
  for (std::size_t rank = 0; rank < told.size(); ++rank) {
    for (Reader reader(told[rank]); !reader.empty();) {
      const std::uint64_t old_rank = reader.number();
      const auto ends = reader.take(reader.number());
      if (old_rank >= have_.size()) {
        throw PeerLost("rank " + std::to_string(rank) + " has an image of old rank " +
                       std::to_string(old_rank) + ", and there was none");
      }
      if (StepParts::has(old, static_cast<int>(old_rank))) continue;
      try {
        StepParts::add(old, static_cast<int>(old_rank), ends,
                       "what rank " + std::to_string(rank) + " has of it");
      } catch (const CorruptData& e) {  // it was sound where it came from
        throw PeerLost(e.what());
      }
    }
  }
}

std::vector<std::byte> PartPlan::encode(std::span<const ImagePart> parts) {
  std::vector<std::byte> bytes;
  for (const ImagePart& part : parts) {
    put(bytes, static_cast<std::uint64_t>(part.old_rank));
    put(bytes, part.begin);
    put(bytes, part.end);
  }
  return bytes;
}

void PartPlan::set_needs(std::span<const std::vector<std::byte>> encoded) {
  for (std::size_t rank = 0; rank < encoded.size(); ++rank) {
    for (Reader reader(encoded[rank]); !reader.empty();) {
      ImagePart part;
      const std::uint64_t old_rank = reader.number();
      part.begin = reader.number();
      part.end = reader.number();
      if (old_rank >= have_.size() || part.begin > part.end) {
        throw PeerLost("rank " + std::to_string(rank) + " asks for what no image has");
      }
      part.old_rank = static_cast<int>(old_rank);
      needs_[rank].push_back(part);
    }
  }
}

bool PartPlan::prove_served(StepStates& old, int rank) const {
  for (std::size_t to = 0; to < needs_.size(); ++to) {
    for (const ImagePart& part : needs_[to]) {
      if (server(part.old_rank, static_cast<int>(to)) != rank) continue;
      try {
        if (!StepParts::prove(old, part)) return false;
      } catch (const InvalidArgument& e) {
        throw PeerLost("rank " + std::to_string(to) + " asks for what no image has: " + e.what());
      }
    }
  }
  return true;
}

std::uint64_t PartPlan::bytes_for(int rank) const {
  std::uint64_t bytes = 0;
  for (const ImagePart& part : needs_.at(static_cast<std::size_t>(rank))) {
    bytes += part.end - part.begin;
  }
  return bytes;
}

/// What `to` needs of `from`, cut into the messages that both ends expect.
std::vector<ImagePart> PartPlan::pieces(int from, int to, std::uint64_t most) const {
  std::vector<ImagePart> pieces;
  for (const ImagePart& part : needs_[static_cast<std::size_t>(to)]) {
    if (server(part.old_rank, to) != from) continue;
    for (std::uint64_t at = part.begin; at < part.end; at += most) {
      pieces.push_back({part.old_rank, at, std::min(at + most, part.end)});
    }
  }
  return pieces;
}

std::optional<Pairs> PartPlan::exchange(const StepStates& old, int rank,
                                        const OldFiles& files) const {
  std::vector<int> peers;
  for (int other = 0; other < static_cast<int>(needs_.size()); ++other) {
    const auto any = [&](int from, int to) { return !pieces(from, to, files.piece_bytes).empty(); };
    if (other != rank && (any(rank, other) || any(other, rank))) peers.push_back(other);
  }
  if (peers.empty()) return std::nullopt;
  try {
    Pairs pairs = files.connect(peers);
    exchange(old, rank, files, pairs);
    return pairs;
  } catch (const RejoinNeeded&) {
    throw;
  } catch (const Error& e) {
    files.throw_if_lost();
    throw PeerLost("rank " + std::to_string(rank) + " cannot exchange parts of old images with " +
                   "ranks " + ranks_text(peers) + ": " + e.what());
  }
}

void PartPlan::exchange(const StepStates& old, int rank, const OldFiles& files,
                        Pairs& pairs) const {
  const auto shared = std::make_shared<LostLink>();  // the links may outlive this call
  const LostLink& lost = *shared;
  pairs.links->set_handlers({.on_message = [](int, std::span<const std::byte>) {},
                             .on_lost =
                                 [shared](int peer, LostReason reason, const std::string& detail) {
                                   // A rank that is through closes its links in order.
                                   if (reason == LostReason::kClosed) return;
                                   shared->set(peer, std::string(to_string(reason)) + " " + detail);
                                 }});
  // All ranks do the same rounds: in each, a rank sends to one rank and receives from one. Piece by
  // piece it waits for both, so the rank that is behind all others always finds its peers' calls.
  const int size = static_cast<int>(needs_.size());
  for (int distance = 1; distance < size; ++distance) {
    const int to = (rank + distance) % size, from = (rank + size - distance) % size;
    const auto go = pieces(rank, to, files.piece_bytes),
               come = pieces(from, rank, files.piece_bytes);
    Window sends(files, lost), receives(files, lost);
    for (std::size_t i = 0; i < std::max(go.size(), come.size()); ++i) {
      if (i < come.size()) {
        receives.add(pairs.data->receive(from, 0, StepParts::room(old, come[i])));
      }
      if (i < go.size()) {
        const auto [bytes, path] = StepParts::bytes(old, go[i]);
        {
          replicate::Reads::Reading reading(&files.reads, path.string());
          replicate::read_pages(bytes, reading);
        }
        sends.add(pairs.data->send(to, 0, bytes));
      }
    }
    receives.wait_all();
    sends.wait_all();
  }
}

}  // namespace meshstage::detail
