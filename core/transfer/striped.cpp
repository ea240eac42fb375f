#include <meshstage/core/transfer/striped_impl.hpp>

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/exception_of.hpp>
#include <meshstage/core/error/little_endian.hpp>

namespace meshstage::transfer {
namespace {

constexpr std::uint32_t kNoPiece = 0xFFFFFFFF, kEnd = 0xFFFFFFFE;

/// See the header.
class Note {
 public:
  static constexpr std::size_t kMostStaying = 14;

  void write(std::uint32_t piece, std::span<const std::uint32_t> staying) {
    put(0, piece);
    put(1, static_cast<std::uint32_t>(staying.size()));
    for (std::size_t i = 0; i < staying.size(); ++i) put(2 + i, staying[i]);
  }
  [[nodiscard]] std::uint32_t piece() const { return get(0); }
  [[nodiscard]] std::size_t staying() const { return get(1); }
  [[nodiscard]] std::uint32_t stays(std::size_t i) const { return get(2 + i); }
  [[nodiscard]] std::span<std::byte> bytes() { return bytes_; }

 private:
  void put(std::size_t i, std::uint32_t number) {
    little_endian::store(bytes_.data() + 4 * i, number);
  }
  [[nodiscard]] std::uint32_t get(std::size_t i) const {
    return little_endian::load<std::uint32_t>(bytes_.data() + 4 * i);
  }
  std::array<std::byte, 64> bytes_{};
};

/// What the threads of one end have in common.
class End {
 public:
  End(const Link& link, std::size_t pieces) : link_(link), named_(pieces) {}

  /// For the sender: the next piece that no connection has taken.
  std::optional<std::size_t> take() {
    const MutexLock lock(mutex_);
    if (next_ == named_.size()) return std::nullopt;
    return next_++;
  }
  /// For the receiver: a note named this piece.
  std::size_t name(std::uint32_t piece) {
    const MutexLock lock(mutex_);
    if (piece >= named_.size()) throw nonsense("a piece that the image has not");
    if (std::exchange(named_[piece], std::uint8_t{1}) != 0) throw nonsense("a piece twice");
    return piece;
  }
  /// A piece has left, has come or stays.
  void done() {
    const MutexLock lock(mutex_);
    ++done_;
    if (link_.on_piece) link_.on_piece(done_, named_.size());
  }
  void check_all_came() {
    const MutexLock lock(mutex_);
    if (done_ == named_.size()) return;
    throw nonsense("only " + std::to_string(done_) + " of " + std::to_string(named_.size()) +
                   " pieces");
  }
  [[nodiscard]] PeerLost nonsense(const std::string& what) const {
    return make_error<PeerLost>("rank " + std::to_string(link_.peer) + " sent " + what, link_.peer);
  }

 private:
  const Link& link_;
  Mutex mutex_;
  std::size_t next_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  std::size_t done_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  std::vector<std::uint8_t> named_ MESHSTAGE_GUARDED_BY(mutex_);
};

/// The error of a transfer: what one connection threw. The abort that follows makes the others
/// throw Cancelled, maybe sooner than the first one is here, and Cancelled would hide that a peer
/// is lost.
class FirstError {
 public:
  void note(std::exception_ptr error, bool cancelled) noexcept {
    const MutexLock lock(mutex_);
    if (error_ && (cancelled || !cancelled_)) return;
    error_ = std::move(error);
    cancelled_ = cancelled;
  }
  [[nodiscard]] std::exception_ptr get() const noexcept {
    const MutexLock lock(mutex_);
    return error_;
  }

 private:
  mutable Mutex mutex_;
  std::exception_ptr error_ MESHSTAGE_GUARDED_BY(mutex_);
  bool cancelled_ MESHSTAGE_GUARDED_BY(mutex_) = false;
};

/// What the other threads' transfers throw.
std::exception_ptr failed(int peer) noexcept {
  return exception_of(
      [peer] { return Cancelled("a transfer with rank " + std::to_string(peer) + " failed"); });
}

/// Runs `one(connection)` for each connection at once.
void over_all(const Link& link, const std::function<void(unsigned)>& one) {
  const unsigned connections = connections_of(link);
  FirstError first;
  const auto end = [&](bool cancelled, bool peer) {  // the other connections' threads must not wait
    first.note(std::current_exception(), cancelled);
    link.group.abort(peer ? std::current_exception() : failed(link.peer));
  };
  Crew crew("ms-conn", connections);
  try {
    crew.run(connections, [&](std::size_t i) {
      try {
        one(static_cast<unsigned>(i));
      } catch (const Cancelled&) {
        end(true, false);
        throw;
      } catch (const RejoinNeeded&) {  // a lost or silent peer is the cause for all of the group
        end(false, true);
        throw;
      } catch (...) {  // passed on
        end(false, false);
        throw;
      }
    });
  } catch (...) {  // passed on, the cause rather than what it led to
    if (const auto error = first.get()) std::rethrow_exception(error);
    throw;
  }
}

/// What both sides of one connection have.
class Lane {
 protected:
  Lane(const Link& link, End& end, unsigned connection)
      : link_(link),
        end_(end),
        group_(link.group.over(connection)),
        first_place_(std::size_t{connection} * kDepth) {}
  /// The place of the next piece. Fewer than kDepth are in flight.
  [[nodiscard]] std::size_t next_place() { return first_place_ + posted_++ % kDepth; }

  const Link& link_;
  End& end_;
  ProcessGroup& group_;

 private:
  const std::size_t first_place_;
  std::size_t posted_ = 0;
};

/// The sender's side of one connection.
class Sender : private Lane {
 public:
  Sender(const Link& link, const PieceSource& source, End& end, unsigned connection)
      : Lane(link, end, connection), source_(source) {}

  void run() {
    bool more = true;
    while (more) {
      make_room();  // before a piece is taken, which another connection would send sooner
      std::optional<std::size_t> piece;
      std::vector<std::uint32_t> staying;
      while (!piece && staying.size() < Note::kMostStaying) {
        const auto next = end_.take();
        more = next.has_value();
        if (!more) break;
        if (source_.stays && source_.stays(*next)) {
          staying.push_back(static_cast<std::uint32_t>(*next));
          end_.done();
        } else {
          piece = next;
        }
      }
      if (piece || !staying.empty()) post(piece, staying);
    }
    while (!flying_.empty()) finish_oldest();
    for (unsigned i = 0; i < kDepth; ++i) post_note(kEnd, {});
    while (!flying_.empty()) finish_oldest();
  }

 private:
  struct Flying {
    std::unique_ptr<Note> note;
    std::unique_ptr<Transfer> noted, sent;  // sent: null where the note names no piece
  };

  /// Then the place of the next piece is free, too.
  void make_room() {
    while (flying_.size() >= kDepth) finish_oldest();
  }
  void post_note(std::uint32_t piece, std::span<const std::uint32_t> staying) {
    make_room();
    auto note = std::make_unique<Note>();
    note->write(piece, staying);
    auto noted = group_.send(link_.peer, link_.tag | kNoteBit, note->bytes());
    flying_.push_back({std::move(note), std::move(noted), nullptr});
  }
  void post(std::optional<std::size_t> piece, std::span<const std::uint32_t> staying) {
    if (!piece) return post_note(kNoPiece, staying);
    const auto bytes = source_.bytes(*piece, next_place());
    post_note(static_cast<std::uint32_t>(*piece), staying);
    flying_.back().sent = group_.send(link_.peer, link_.tag, bytes);
  }
  void finish_oldest() {
    auto& oldest = flying_.front();
    oldest.noted->wait_while_moving(link_.stall);
    const bool piece = oldest.sent != nullptr;
    if (piece) oldest.sent->wait_while_moving(link_.stall);
    flying_.pop_front();
    if (piece) end_.done();
  }

  const PieceSource& source_;
  std::deque<Flying> flying_;
};

/// The receiver's side of one connection.
class Receiver : private Lane {
 public:
  Receiver(const Link& link, const PieceTarget& target, End& end, unsigned connection)
      : Lane(link, end, connection), target_(target) {}

  void run() {
    for (unsigned i = 0; i < kDepth; ++i) expect_note();
    for (bool ended = false; !notes_.empty();) {
      notes_.front().came->wait_while_moving(link_.stall);
      const Note note = *notes_.front().note;
      notes_.pop_front();
      if (ended && note.piece() != kEnd) throw end_.nonsense("a piece after its last one");
      ended = note.piece() == kEnd;
      if (!ended) {
        expect_note();
        take(note);
      }
    }
    while (!flying_.empty()) finish_oldest();
  }

 private:
  struct Expected {
    std::unique_ptr<Note> note;
    std::unique_ptr<Transfer> came;
  };
  struct Flying {
    std::size_t piece = 0, place = 0;
    std::unique_ptr<Transfer> came;
  };

  void expect_note() {
    auto note = std::make_unique<Note>();
    auto came = group_.receive(link_.peer, link_.tag | kNoteBit, note->bytes());
    notes_.push_back({std::move(note), std::move(came)});
  }
  void take(const Note& note) {
    if (note.staying() > Note::kMostStaying) throw end_.nonsense("a note of no sense");
    for (std::size_t i = 0; i < note.staying(); ++i) {
      const auto piece = end_.name(note.stays(i));
      if (!target_.stayed) throw end_.nonsense("not all of an image that is not here");
      target_.stayed(piece);
      end_.done();
    }
    if (note.piece() == kNoPiece) return;
    const auto piece = end_.name(note.piece());
    while (flying_.size() >= kDepth) finish_oldest();
    const auto place = next_place();
    auto came = group_.receive(link_.peer, link_.tag, target_.memory(piece, place));
    flying_.push_back({piece, place, std::move(came)});
  }
  void finish_oldest() {
    const auto& oldest = flying_.front();
    oldest.came->wait_while_moving(link_.stall);
    if (target_.came) target_.came(oldest.piece, oldest.place);
    flying_.pop_front();
    end_.done();
  }

  const PieceTarget& target_;
  std::deque<Expected> notes_;
  std::deque<Flying> flying_;
};

}  // namespace

void send_striped(const Link& link, const PieceSource& source) {
  if (source.pieces == 0) return;
  End end(link, source.pieces);
  over_all(link, [&](unsigned i) { Sender(link, source, end, i).run(); });
}

void receive_striped(const Link& link, const PieceTarget& target) {
  if (target.pieces == 0) return;
  End end(link, target.pieces);
  over_all(link, [&](unsigned i) { Receiver(link, target, end, i).run(); });
  end.check_all_came();
}

}  // namespace meshstage::transfer
