#include <unistd.h>

#include <utility>

#include <nlohmann/json.hpp>

#include <meshstage/core/checkpoint/rank_file_impl.hpp>
#include <meshstage/core/checkpoint/trace_impl.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/size_signal.hpp>

namespace meshstage::detail {
namespace {

using Json = nlohmann::ordered_json;

std::int64_t microseconds(std::chrono::system_clock::duration time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time).count();
}

}  // namespace

Trace::Trace(const std::filesystem::path& path, int rank)
    : path_(rank_file(path, rank)), rank_(rank), file_(path_, std::ios::trunc) {
  file_ << "[\n" << std::flush;
  if (!file_) {
    throw make_error<IoError>("the trace " + path_.string() + " cannot be written", {}, {},
                              path_.string());
  }
  write({{"ph", "M"},
         {"name", "process_name"},
         {"args", {{"name", "rank " + std::to_string(rank)}}}});
}

Trace::~Trace() { worker_.drain(); }

int Trace::row(Track track, int peer) {
  constexpr const char* kNames[] = {"",     "recovery", "stage",        "agreement",
                                    "disk", "send to ", "receive from "};
  const auto [it, fresh] =
      rows_.emplace(std::pair(track, peer), static_cast<int>(track) * 100'000 + peer + 1);
  if (fresh) {
    std::string name = kNames[static_cast<std::size_t>(track)];
    if (peer >= 0) name += "rank " + std::to_string(peer);
    write({{"ph", "M"}, {"name", "thread_name"}, {"tid", it->second}, {"args", {{"name", name}}}});
  }
  return it->second;
}

void Trace::write(const Json& event) {
  Json whole{{"pid", rank_}};
  whole.update(event);
  worker_.post([this, line = whole.dump() + ",\n"] {
    const SizeSignalBlocked blocked;  // a trace that grows too large ends, not the trainer
    file_ << line << std::flush;
  });
}

void Trace::span(Track track, const char* name, const PointEvent& event, Time now) {
  // What a recovery finds is not known when it begins.
  const auto begun = begun_.find({track, track == Track::kRecovery ? kNoImage : event.id});
  if (begun == begun_.end()) return;
  const std::string what = event.id.exists() ? std::to_string(event.id.step) : "nothing";
  write({{"ph", "X"},
         {"name", std::string(name) + " " + what},
         {"tid", row(track, event.peer)},
         {"ts", microseconds(begun->second.time_since_epoch())},
         {"dur", microseconds(now - begun->second)},
         {"args", {{"generation", event.generation}}}});
}

void Trace::instant(Track track, const PointEvent& event, Time now) {
  write({{"ph", "i"},
         {"s", "t"},
         {"name", event.name},
         {"tid", row(track, -1)},
         {"ts", microseconds(now.time_since_epoch())},
         {"args", {{"generation", event.generation}, {"step", event.id.step}}}});
}

void Trace::note(const PointEvent& event) {
  const Time now = std::chrono::system_clock::now();
  const MutexLock lock(mutex_);
  switch (event.point) {
    case Point::kFormed:
      begun_.clear();
      begin(Track::kRecovery, kNoImage, now);
      return instant(Track::kRecovery, event, now);
    case Point::kRestoring:
      span(Track::kRecovery, "recover", event, now);
      return instant(Track::kRecovery, event, now);
    case Point::kOwnWriting:
      begin(Track::kSend, event.id, now);
      return begin(Track::kStage, event.id, now);
    case Point::kOwnSealed:
      return span(Track::kStage, "stage and digest", event, now);
    case Point::kReplicaWriting:
      return begin(Track::kReceive, event.id, now);
    case Point::kChunkSent:
      if (event.chunk == event.chunks) span(Track::kSend, "send", event, now);
      return;
    case Point::kChunkReceived:
      if (event.chunk == event.chunks) span(Track::kReceive, "receive and digest", event, now);
      return;
    case Point::kVoted:
      return begin(Track::kAgreement, event.id, now);
    case Point::kComplete:
      span(Track::kAgreement, "agree on", event, now);
      std::erase_if(begun_, [&event](const auto& entry) {
        return entry.first.second < event.id && entry.first.second.exists();
      });
      return begin(Track::kDisk, event.id, now);
    case Point::kFailed:
      span(Track::kAgreement, "fail", event, now);
      return instant(Track::kAgreement, event, now);
    case Point::kPersisted:
      return span(Track::kDisk, "persist", event, now);
    case Point::kPruned:
    case Point::kFinishing:
      return instant(Track::kDisk, event, now);
    case Point::kOffered:
    case Point::kReplicaSealed:
    case Point::kDecided:
    case Point::kFirstNoted:
      return instant(Track::kAgreement, event, now);
    default:
      return instant(Track::kRecovery, event, now);
  }
}

}  // namespace meshstage::detail
