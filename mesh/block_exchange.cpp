#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/block_exchange.hpp>

namespace meshstage::blocks {
namespace {

constexpr std::size_t kMaxPart = std::size_t{4} << 20;
constexpr std::size_t kMinPart = std::size_t{16} << 10;
/// Parts under way in each direction. Scratch memory is this many parts.
constexpr std::size_t kWindow = 2;
/// A group of its own tags; below those of the collectives.
constexpr std::uint64_t kTag = 0x626c6f636b73;  // "blocks"

/// How long a part of a block of so many bytes is: the same on both sides.
std::size_t part_bytes(std::size_t block_bytes) {
  return std::clamp(block_bytes / 8, kMinPart, kMaxPart);
}

/// The parts in which a block travels, one after the other.
class Parts {
 public:
  explicit Parts(const Tensor& view) : view_(view), at_(view.dim(), 0) {
    const Shape& shape = view.shape();
    const auto part = static_cast<std::int64_t>(part_bytes(view.nbytes()) / size_of(view.dtype()));
    std::int64_t row = 1;
    std::size_t whole = shape.size();  // dimensions from here on fit into a part
    while (whole > 0 && row * shape[whole - 1] <= part) row *= shape[--whole];
    if (whole == 0) {
      run_ = shape.empty() ? 1 : shape[0];
    } else {
      cut_ = whole - 1;
      run_ = part / row;
    }
  }
  [[nodiscard]] bool done() const noexcept { return done_; }
  [[nodiscard]] Tensor next();

 private:
  Tensor view_;
  std::size_t cut_ = 0;  // cut in runs of indices; dimensions before are taken index by index
  std::int64_t run_ = 1;
  Shape at_;
  bool done_ = false;
};

Tensor Parts::next() {
  if (view_.dim() == 0) {
    done_ = true;
    return view_;
  }
  Tensor part = view_;
  for (std::size_t d = 0; d < cut_; ++d) {
    part = part.narrow(static_cast<std::int64_t>(d), at_[d], 1);
  }
  const std::int64_t length = std::min(run_, view_.size(cut_) - at_[cut_]);
  part = part.narrow(static_cast<std::int64_t>(cut_), at_[cut_], length);
  at_[cut_] += length;
  for (std::size_t d = cut_; at_[d] == view_.size(d); --d) {
    if (d == 0) {
      done_ = true;
      break;
    }
    at_[d] = 0;
    ++at_[d - 1];
  }
  return part;
}

std::span<std::byte> bytes_of(const Tensor& contiguous) {
  return {contiguous.first_byte(), contiguous.nbytes()};
}

/// The parts of some pieces, one after the other, and scratch memory for those that need it.
class Lane {
 public:
  explicit Lane(std::vector<const Piece*> pieces) : pieces_(std::move(pieces)) { open(); }

  [[nodiscard]] bool done() const noexcept { return !parts_; }
  [[nodiscard]] const Piece& piece() const noexcept { return *pieces_[index_]; }
  [[nodiscard]] Tensor next() {
    Tensor part = parts_->next();
    if (parts_->done()) {
      ++index_;
      open();
    }
    return part;
  }

  /// Row-major memory of the part's shape. Reused: only the last kWindow ones are good.
  [[nodiscard]] Tensor scratch(const Tensor& part) {
    Storage& slot = scratch_[turn_++ % kWindow];
    if (!slot.valid() || slot.nbytes() < part.nbytes()) {
      slot = {};
      slot = Storage::allocate(part.nbytes());
    }
    return Tensor::on_storage(slot, part.dtype(), part.shape());
  }

 private:
  void open() {
    parts_.reset();
    if (index_ == pieces_.size()) return;
    parts_ = std::make_unique<Parts>(pieces_[index_]->view);
  }
  std::vector<const Piece*> pieces_;
  std::size_t index_ = 0;
  std::unique_ptr<Parts> parts_;
  Storage scratch_[kWindow];
  std::size_t turn_ = 0;
};

/// Parts that were posted and not waited for, oldest first.
struct Sending {
  Tensor memory;
  std::unique_ptr<Transfer> transfer;
};
struct Receiving {
  const Piece* piece = nullptr;
  Tensor place;
  Tensor memory;
  std::unique_ptr<Transfer> transfer;
};

void arrived(const Piece& piece, const Tensor& place, const Tensor& elements) {
  if (piece.arrive) {
    piece.arrive(place, elements);
  } else if (place.first_byte() != elements.first_byte()) {
    place.copy_from(elements);
  }
}

/// All that goes to one peer and all that comes from another (perhaps the same), until both are
/// done. Sending never waits for receiving or the other way round further than the window, and all
/// ranks go through the distances in one order, so whoever is behind finds its peers ready.
void trade(ProcessGroup& group, std::vector<const Piece*> out, std::vector<const Piece*> in,
           Deadline deadline) {
  Lane sends(std::move(out));
  Lane receives(std::move(in));
  std::deque<Sending> sending;
  std::deque<Receiving> receiving;
  const auto post_send = [&] {
    const int peer = sends.piece().peer;
    Tensor part = sends.next();
    Tensor memory = part;
    if (!part.is_contiguous()) {
      memory = sends.scratch(part);
      memory.copy_from(part);
    }
    sending.push_back({memory, group.send(peer, kTag, bytes_of(memory))});
  };
  const auto post_receive = [&] {
    const Piece& piece = receives.piece();
    Tensor place = receives.next();
    const bool direct = !piece.arrive && place.is_contiguous();
    Tensor memory = direct ? place : receives.scratch(place);
    auto transfer = group.receive(piece.peer, kTag, bytes_of(memory));
    receiving.push_back({&piece, std::move(place), std::move(memory), std::move(transfer)});
  };
  for (;;) {
    while (receiving.size() < kWindow && !receives.done()) post_receive();
    while (sending.size() < kWindow && !sends.done()) post_send();
    if (sending.empty() && receiving.empty()) return;
    if (!receiving.empty()) {
      Receiving& first = receiving.front();
      first.transfer->wait(deadline);
      arrived(*first.piece, first.place, first.memory);
      receiving.pop_front();
    }
    if (!sending.empty()) {
      sending.front().transfer->wait(deadline);
      sending.pop_front();
    }
  }
}

void keep(const std::vector<const Piece*>& out, const std::vector<const Piece*>& in) {
  if (out.size() != in.size()) {
    throw InvalidState("a rank sends itself " + std::to_string(out.size()) +
                       " blocks and expects " + std::to_string(in.size()));
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (in[i]->arrive) {
      in[i]->arrive(in[i]->view, out[i]->view);
    } else if (in[i]->view.first_byte() != out[i]->view.first_byte()) {
      in[i]->view.copy_from(out[i]->view);
    }
  }
}

}  // namespace

void exchange(ProcessGroup& group, std::span<const Piece> outgoing, std::span<const Piece> incoming,
              Deadline deadline) {
  struct Distance {
    std::vector<const Piece*> out, in;
  };
  std::map<int, Distance> distances;
  const int me = group.rank();
  const int size = group.size();
  for (const Piece& piece : outgoing) {
    if (piece.view.numel() > 0) distances[(piece.peer - me + size) % size].out.push_back(&piece);
  }
  for (const Piece& piece : incoming) {
    if (piece.view.numel() > 0) distances[(me - piece.peer + size) % size].in.push_back(&piece);
  }
  for (auto& [distance, both] : distances) {
    if (distance == 0) {
      keep(both.out, both.in);
    } else {
      trade(group, std::move(both.out), std::move(both.in), deadline);
    }
  }
}

}  // namespace meshstage::blocks
