#include <meshstage/core/checkpoint/old_parts_impl.hpp>

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>

namespace meshstage::detail {
namespace {

constexpr std::uint64_t kPieceBytes = std::uint64_t{4} << 20U;
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
    if (bytes > left_.size()) throw PeerLost("a rank told less about old images than it said");
    const auto taken = left_.first(bytes);
    left_ = left_.subspan(bytes);
    return taken;
  }

 private:
  std::span<const std::byte> left_;
};

/// Transfers of one direction, of which the oldest is waited for.
class Window {
 public:
  explicit Window(const OldFiles& files) : files_(files) {}
  void add(std::unique_ptr<Transfer> transfer) {
    transfers_.push_back(std::move(transfer));
    if (transfers_.size() > kWindow) wait();
  }
  void wait_all() {
    while (!transfers_.empty()) wait();
  }

 private:
  void wait() {
    // Who dies, or is silent, ends the generation, which shows here.
    constexpr std::chrono::milliseconds kLook(100);
    while (!transfers_.front()->done_by(Deadline::after(kLook))) files_.throw_if_lost();
    transfers_.pop_front();
  }
  const OldFiles& files_;
  std::deque<std::unique_ptr<Transfer>> transfers_;
};

std::string text_of(const std::set<int>& ranks) {
  std::string text;
  for (const int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  return text;
}

}  // namespace

PartPlan::PartPlan(std::span<const std::vector<std::byte>> said, const OldWorldStep& step)
    : needs_(said.size()) {
  const auto old_ranks = static_cast<std::size_t>(step.world_size);
  std::set<int> nowhere;
  for (std::size_t old_rank = 0; old_rank < old_ranks; ++old_rank) {
    std::vector<int> have;
    for (std::size_t rank = 0; rank < said.size(); ++rank) {
      if (said[rank].size() != old_ranks) {
        throw PeerLost("rank " + std::to_string(rank) + " did not say which old files it has");
      }
      if (said[rank][old_rank] != std::byte{0}) have.push_back(static_cast<int>(rank));
    }
    all_have_all_ = all_have_all_ && have.size() == said.size();
    if (have.empty()) nowhere.insert(static_cast<int>(old_rank));
    servers_.push_back(have.empty() ? -1 : have[old_rank % have.size()]);
  }
  if (nowhere.empty()) return;
  throw NotFound("no rank has a sound file of old rank " + text_of(nowhere) + " of " +
                 std::to_string(step.world_size) + " of " + to_string(step.id) +
                 " any more, in the directory that it was started with");
}

std::vector<std::byte> PartPlan::ends_of(const StepStates& old, int rank) const {
  std::vector<std::byte> told;
  for (std::size_t old_rank = 0; old_rank < servers_.size(); ++old_rank) {
    if (servers_[old_rank] != rank) continue;
    const auto ends = StepParts::ends(old, static_cast<int>(old_rank));
    put(told, old_rank);
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
      if (old_rank >= servers_.size()) throw PeerLost("a rank told of an old rank too many");
      if (StepParts::has(old, static_cast<int>(old_rank))) continue;
      try {
        StepParts::add(old, static_cast<int>(old_rank), ends,
                       "the disk of rank " + std::to_string(rank));
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
      if (old_rank >= servers_.size() || part.begin > part.end) {
        throw PeerLost("rank " + std::to_string(rank) + " asks for what no image has");
      }
      part.old_rank = static_cast<int>(old_rank);
      needs_[rank].push_back(part);
    }
  }
}

std::uint64_t PartPlan::bytes_for(int rank) const {
  std::uint64_t bytes = 0;
  for (const ImagePart& part : needs_.at(static_cast<std::size_t>(rank))) {
    bytes += part.end - part.begin;
  }
  return bytes;
}

/// What `to` needs of `from`, cut into the messages that both ends expect.
std::vector<ImagePart> PartPlan::pieces(int from, int to) const {
  std::vector<ImagePart> pieces;
  for (const ImagePart& part : needs_[static_cast<std::size_t>(to)]) {
    if (server(part.old_rank) != from) continue;
    for (std::uint64_t at = part.begin; at < part.end; at += kPieceBytes) {
      pieces.push_back({part.old_rank, at, std::min(at + kPieceBytes, part.end)});
    }
  }
  return pieces;
}

std::optional<Pairs> PartPlan::exchange(const StepStates& old, int rank,
                                        const OldFiles& files) const {
  const int size = static_cast<int>(needs_.size());
  std::vector<int> peers;
  for (int other = 0; other < size; ++other) {
    if (other != rank && !(pieces(rank, other).empty() && pieces(other, rank).empty())) {
      peers.push_back(other);
    }
  }
  if (peers.empty()) return std::nullopt;
  Pairs pairs;
  try {
    pairs = files.connect(peers);
  } catch (const Error& e) {
    files.throw_if_lost();
    throw PeerLost("rank " + std::to_string(rank) + " cannot connect to rank " +
                   text_of({peers.begin(), peers.end()}) + " for old images: " + e.what());
  }
  // All ranks do the same rounds: in each, a rank sends to one rank and receives from one. Piece by
  // piece it waits for both, so the rank that is behind all others always finds its peers' calls.
  for (int distance = 1; distance < size; ++distance) {
    const int to = (rank + distance) % size, from = (rank + size - distance) % size;
    const auto go = pieces(rank, to), come = pieces(from, rank);
    Window sends(files), receives(files);
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
  return pairs;
}

}  // namespace meshstage::detail
