#include <meshstage/core/replicate/lender.hpp>

#include <algorithm>
#include <string>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {

Lender::Lender(Engine& engine, Streams& streams, Verifier& verifier)
    : engine_(engine), streams_(streams), verifier_(verifier) {}

void Lender::serve(const protocol::ServeLent& action) {
  to_serve_[action.to] = action;
  serve_if_asked(action.to);
}

void Lender::want(int from, exchange::Want want) {
  wants_[from] = std::move(want);
  serve_if_asked(from);
}

void Lender::serve_if_asked(int to) {
  const auto told = to_serve_.find(to);
  const auto asked = wants_.find(to);
  if (told == to_serve_.end() || asked == wants_.end()) return;
  const protocol::ServeLent action = told->second;
  const exchange::Want want = std::move(asked->second);
  to_serve_.erase(told);
  wants_.erase(asked);
  const auto fail = [this, to](ErrorKind kind, const std::string& why) {
    engine_.feed(protocol::FetchFailed{to, kind, why});
  };
  if (want.id != action.id) {
    return fail(ErrorKind::kCorruptData, "rank " + std::to_string(to) +
                                             " wants what it borrows of " + to_string(want.id) +
                                             ", not of " + to_string(action.id));
  }
  verifier_.lent(
      want, action.slot, to,
      [this, to, id = want.id](const Verifier::Source& source) {
        Outgoing stream = outgoing_bytes(source.bytes, source.keep);
        stream.to = to;
        transfer::Shape shape;
        shape.block_bytes = engine_.options.block_bytes;
        shape.with_manifest = false;
        for (const auto& range : source.ranges) shape.image_bytes += range.bytes;
        stream.start = exchange::stream_start(to, id, shape, exchange::Content::kLent);
        stream.ranges = source.ranges;
        streams_.send(std::move(stream), [] {});
      },
      fail);
}

void Lender::stop_borrowing(const protocol::StopBorrowing& action) {
  engine_.report.warn("rank " + std::to_string(action.from) +
                      " has other bytes than this rank in tensors that are said to be the same on "
                      "both, at " +
                      to_string(action.id) + "; replicas leave them in from now on");
  engine_.gate.keep_apart(action.from);
}

void Lender::leave() {
  wants_.clear();
  to_serve_.clear();
}

}  // namespace meshstage::replicate
