#include <algorithm>
#include <array>
#include <chrono>
#include <new>
#include <utility>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/nccl/owner_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::nccl {

namespace {

using namespace std::chrono_literals;
using nccl_module::ErrorText;
using nccl_module::Result;

/// NCCL has no events of its own to wait for.
constexpr auto kPoll = 50us;
/// What NCCL reports of a peer is often a link's loss, too, which names the rank.
constexpr auto kNameOfLost = 300ms;
/// A peer that left in order had ended its part of what runs.
constexpr auto kDrain = 2s;
/// An end in order flushes what peers still fetch from this rank.
constexpr auto kFinish = 5s;

nccl_module::Operation operation_of(const Posted& call, int size) {
  const auto& post = call.post;
  nccl_module::Operation operation{.kind = nccl_module::Kind::kSend,
                                   .peer = post.peer,
                                   .source = call.source,
                                   .target = call.target,
                                   .count = post.bytes,
                                   .element = nccl_module::kBytes,
                                   .reduce = post.reduce};
  const auto elements = [&] {
    operation.element = post.element;
    return post.bytes / collectives::bytes_of(static_cast<collectives::Element>(post.element));
  };
  switch (post.call) {
    case Call::kSend:
    case Call::kBarrier:  // never issued
      break;
    case Call::kReceive:
      operation.kind = nccl_module::Kind::kReceive;
      break;
    case Call::kBroadcast:
      operation.kind = nccl_module::Kind::kBroadcast;
      break;
    case Call::kAllGather:
      operation.kind = nccl_module::Kind::kAllGather;
      break;
    case Call::kAllReduce:
      operation.kind = nccl_module::Kind::kAllReduce;
      operation.count = elements();
      break;
    case Call::kReduceScatter:
      operation.kind = nccl_module::Kind::kReduceScatter;
      operation.count = elements() / static_cast<std::uint64_t>(size);
      break;
  }
  return operation;
}

}  // namespace

Owner::Owner(const nccl_module::Table& table, const NcclOptions& options,
             std::shared_ptr<ControlLinks> links, int own_rank, int world_size)
    : rank(own_rank),
      size(world_size),
      trainer(options.trainer),
      runtime(DeviceRuntime::of(options.trainer.device.type)),
      table_(table),
      links_(std::move(links)),
      sequencer_(world_size) {}

void Owner::start() {
  links_->set_handlers(
      {.on_message = [this](int peer, auto message) { on_message(peer, message); },
       .on_lost = [this](int peer, LostReason reason,
                         const std::string& detail) { on_lost(peer, reason, detail); }});
  thread_ = Thread("ms-nccl", [this] { run(); });
}

bool Owner::wait_connected(Deadline deadline) {
  MutexLock lock(mutex_);
  const bool in_time = changed_.wait_until(lock, deadline, [this]() MESHSTAGE_REQUIRES(mutex_) {
    return connected_ || cause_ != nullptr;
  });
  if (cause_) std::rethrow_exception(cause_);
  return in_time;
}

// --- calls ---

void Owner::check_open() const {
  if (ended_by_close_) throw InvalidState("the process group was closed");
  if (cause_) std::rethrow_exception(cause_);
}

void Owner::require_open() {
  const MutexLock lock(mutex_);
  check_open();
}

std::shared_ptr<Posted> Owner::post(Posted call) {
  auto posted = std::make_shared<Posted>(std::move(call));
  const MutexLock lock(mutex_);
  check_open();
  posted->post.id = ++last_id_;
  try {
    waiting_.emplace(posted->post.id, posted);
    decide(rank, posted->post);
  } catch (...) {  // passed on; the others may know of the call, and nobody here would take it back
    end(std::current_exception());
    throw;
  }
  return posted;
}

void Owner::decide(int from, const Post& post) {
  if (rank != 0) {
    links_->send(0, encode(post));
    return;
  }
  try {
    for (const auto& decision : sequencer_.post(from, post)) {
      if (decision.rank == rank) {
        apply(decision);
      } else {
        links_->send(decision.rank, encode(decision));
      }
    }
  } catch (const Error&) {
    end(std::current_exception());
  }
}

void Owner::apply(const Decision& decision) {
  const auto found = waiting_.find(decision.id);
  if (found == waiting_.end()) throw CorruptData("a decision on a call that was not posted");
  const auto call = std::move(found->second);
  waiting_.erase(found);
  if (decision.verdict == Verdict::kOtherLength) {
    call->phase = Posted::Phase::kRefused;
  } else if (call->post.call == Call::kBarrier) {
    call->phase = Posted::Phase::kDone;  // every rank has called it, and that is all
  } else {
    call->phase = Posted::Phase::kReleased;
    ++unfinished_;
    released_.push_back(call);
  }
  changed_.notify_all();
}

bool Owner::wait(const Posted& call, Deadline deadline) {
  using Phase = Posted::Phase;
  MutexLock lock(mutex_);
  const bool in_time = changed_.wait_until(lock, deadline, [&]() MESHSTAGE_REQUIRES(mutex_) {
    return call.phase == Phase::kDone || call.phase == Phase::kRefused || cause_ != nullptr;
  });
  if (call.phase == Phase::kDone) {
    late_.done(&call);
    return true;
  }
  if (call.phase == Phase::kRefused) {
    throw make_error<CorruptData>("rank " + std::to_string(call.post.peer) + " and rank " +
                                      std::to_string(rank) +
                                      " posted a message of different lengths, here " +
                                      std::to_string(call.post.bytes) + " bytes",
                                  call.post.peer);
  }
  if (cause_) std::rethrow_exception(cause_);
  return in_time;
}

void Owner::throw_late(const Posted& call, std::exception_ptr why) {
  const MutexLock lock(mutex_);
  late_.raise(&call, std::move(why));
}

void Owner::release(const Posted& call, const std::function<std::string()>& what) noexcept {
  using Phase = Posted::Phase;
  MutexLock lock(mutex_);
  if (call.phase == Phase::kDone || call.phase == Phase::kRefused || closed_) return;
  end(late_.reason([&] { return "a call was given up: " + what(); }));
  if (call.phase != Phase::kIssued) return;
  changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return quiet_; });
}

// --- the end ---

void Owner::abort(std::exception_ptr cause) noexcept {
  const MutexLock lock(mutex_);
  end(std::move(cause));
}

void Owner::end(std::exception_ptr cause) {
  if (cause_) return;
  cause_ = std::move(cause);
  if (!closing_) announce(note_of(cause_, rank), -1);
  changed_.notify_all();
}

void Owner::end_after_draining(std::exception_ptr cause) {
  if (cause_ || leaving_) return;
  if (unfinished_ == 0) return end(std::move(cause));
  leaving_ = std::move(cause);
  drained_by_ = Deadline::after(kDrain);
  changed_.notify_all();
}

void Owner::announce(const AbortNote& note, int except) noexcept {
  if (std::exchange(announced_, true)) return;
  const auto tell = [&](const AbortNote& what) {
    const auto message = encode(what);
    for (const int peer : links_->peers()) {
      if (peer != except) links_->send(peer, message);
    }
  };
  try {
    tell(note);
  } catch (const std::bad_alloc&) {
    try {
      tell({.drain = note.drain, .kind = note.kind, .rank = note.rank, .text = {}});
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch): the links' end tells them
    }
  }
}

void Owner::on_lost(int peer, LostReason reason, const std::string& detail) {
  const bool in_order = reason == LostReason::kClosed;
  const AbortNote note{
      .drain = in_order,
      .kind = static_cast<std::uint8_t>(reason == LostReason::kSilent ? ErrorKind::kPeerSilent
                                                                      : ErrorKind::kPeerLost),
      .rank = peer,
      .text = "rank " + std::to_string(peer) + ": the control link ended (" +
              std::string(to_string(reason)) + (detail.empty() ? "" : ": " + detail) + ")"};
  const MutexLock lock(mutex_);
  if (cause_) return;
  announce(note, peer);
  if (in_order) {
    end_after_draining(cause_of(note));
  } else {
    end(cause_of(note));
  }
}

void Owner::on_message(int peer, std::span<const std::byte> message) {
  const MutexLock lock(mutex_);
  try {
    take(peer, message);
  } catch (...) {  // a wrong message, or no memory: the links' thread goes on
    end(std::current_exception());
  }
}

void Owner::take(int peer, std::span<const std::byte> message) {
  switch (type_of(message)) {
    case MessageType::kId:
      id_ = decode_id(message);
      changed_.notify_all();
      break;
    case MessageType::kPost:
      if (rank != 0) throw make_error<CorruptData>("a call was posted to a rank above 0", peer);
      decide(peer, decode_post(message));
      break;
    case MessageType::kDecision:
      apply(decode_decision(message));
      break;
    case MessageType::kAbort: {
      const auto note = decode_abort(message);
      if (cause_) return;
      announce(note, peer);
      if (note.drain) {
        end_after_draining(cause_of(note));
      } else {
        end(cause_of(note));
      }
      break;
    }
  }
}

void Owner::close() noexcept {
  {
    MutexLock lock(mutex_);
    if (std::exchange(closing_, true)) {
      changed_.wait(lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return closed_; });
      return;
    }
    if (!cause_) {
      ended_by_close_ = true;
      cause_ = std::make_exception_ptr(Cancelled("the process group was closed"));
      // Peers that wait for what this rank does not complete any more must not drain.
      if (unfinished_ != 0) announce(note_of(cause_, rank), -1);
    }
    changed_.notify_all();
  }
  thread_.join();
  links_->set_handlers({});
  links_->close();
  const MutexLock lock(mutex_);
  quiet_ = true;
  closed_ = true;
  waiting_.clear();
  released_.clear();
  changed_.notify_all();
}

// --- the owner's thread ---

void Owner::throw_failed(Result result, const ErrorText& error) {
  {
    MutexLock lock(mutex_);
    (void)changed_.wait_until(lock, Deadline::after(kNameOfLost),
                              [this]() MESHSTAGE_REQUIRES(mutex_) { return cause_ != nullptr; });
    if (cause_) std::rethrow_exception(cause_);
  }
  if (result != nccl_module::kPeerFailed) throw InvalidState(error.text);
  const auto lost = size == 2 ? std::optional<int>(1 - rank) : std::nullopt;
  throw make_error<PeerLost>(std::string("NCCL lost a rank: ") + error.text, lost);
}

void Owner::settle(Communicator* communicator) {
  ErrorText error{};
  for (;;) {
    const auto result = table_.state(communicator, &error);
    if (result == nccl_module::kDone) return;
    if (result != nccl_module::kInProgress) throw_failed(result, error);
    MutexLock lock(mutex_);
    if (changed_.wait_until(lock, Deadline::after(kPoll),
                            [this]() MESHSTAGE_REQUIRES(mutex_) { return cause_ != nullptr; })) {
      std::rethrow_exception(cause_);
    }
    // NCCL may wait for ever for a peer that has left in order.
    if (leaving_ && drained_by_.expired()) std::rethrow_exception(leaving_);
  }
}

void Owner::connect(Communicator* communicator) {
  ErrorText error{};
  std::array<unsigned char, nccl_module::kIdBytes> id{};
  if (rank == 0) {
    const auto result = table_.make_id(communicator, id.data(), &error);
    if (result != nccl_module::kDone) throw_failed(result, error);
    for (const int peer : links_->peers()) links_->send(peer, encode_id(id));
  } else {
    MutexLock lock(mutex_);
    changed_.wait(
        lock, [this]() MESHSTAGE_REQUIRES(mutex_) { return !id_.empty() || cause_ != nullptr; });
    if (cause_) std::rethrow_exception(cause_);
    std::copy(id_.begin(), id_.end(), id.begin());
  }
  const auto result = table_.connect(communicator, rank, size, id.data(), &error);
  if (result != nccl_module::kDone && result != nccl_module::kInProgress) {
    throw_failed(result, error);
  }
  settle(communicator);
  const MutexLock lock(mutex_);
  connected_ = true;
  changed_.notify_all();
}

std::shared_ptr<Posted> Owner::next_to_issue() {
  std::shared_ptr<Posted> call;
  {
    const MutexLock lock(mutex_);
    if (cause_) std::rethrow_exception(cause_);
    if (released_.empty()) return nullptr;
    call = released_.front();
  }
  // Never behind work of the trainer's that may not end: an operation that is issued can be aborted
  // only once it runs.
  if (!call->ready.done()) return nullptr;
  const MutexLock lock(mutex_);
  if (cause_) std::rethrow_exception(cause_);
  released_.pop_front();
  call->phase = Posted::Phase::kIssued;
  return call;
}

void Owner::issue(Communicator* communicator, const std::shared_ptr<Posted>& call) {
  ErrorText error{};
  const auto operation = operation_of(*call, size);
  const auto result = table_.launch(communicator, &operation, 1, &error);
  if (result != nccl_module::kDone && result != nccl_module::kInProgress) {
    throw_failed(result, error);
  }
  // The event must be behind the operation, so it is recorded when the operation is on the stream.
  settle(communicator);
  issued_.push_back(
      {call, runtime.record({trainer.device, StreamHandle{table_.stream(communicator)}})});
}

void Owner::reap(Communicator* communicator) {
  if (issued_.empty()) return;
  ErrorText error{};
  const auto result = table_.state(communicator, &error);
  if (result != nccl_module::kDone && result != nccl_module::kInProgress) {
    throw_failed(result, error);
  }
  while (!issued_.empty() && issued_.front().event.done()) {
    const auto last = std::move(issued_.front());
    issued_.pop_front();
    const MutexLock lock(mutex_);
    last.call->phase = Posted::Phase::kDone;
    --unfinished_;
    changed_.notify_all();
  }
}

void Owner::serve(Communicator* communicator) {
  for (;;) {
    while (const auto call = next_to_issue()) issue(communicator, call);
    reap(communicator);
    MutexLock lock(mutex_);
    if (leaving_ && (unfinished_ == 0 || drained_by_.expired())) {
      std::rethrow_exception(leaving_);
    }
    const bool busy = !issued_.empty() || !released_.empty();
    (void)changed_.wait_until(
        lock, busy ? Deadline::after(kPoll) : drained_by_, [&]() MESHSTAGE_REQUIRES(mutex_) {
          return cause_ != nullptr || (!busy && (!released_.empty() || leaving_ != nullptr));
        });
  }
}

void Owner::pause() {
  MutexLock lock(mutex_);
  (void)changed_.wait_until(lock, Deadline::after(kPoll), [] { return false; });
}

void Owner::stop(Communicator* communicator) {
  ErrorText error{};
  bool in_order = false;
  {
    const MutexLock lock(mutex_);
    in_order = connected_ && closing_ && unfinished_ == 0;
  }
  if (in_order) {
    auto result = table_.finish(communicator, &error);
    for (const auto until = Deadline::after(kFinish);
         result == nccl_module::kInProgress && !until.expired();) {
      pause();
      result = table_.state(communicator, &error);
    }
    in_order = result == nccl_module::kDone;
  }
  if (!in_order) table_.abort(communicator, &error);
  // What was aborted is over, and reports success: nothing of it counts as done.
  try {
    const auto last = runtime.record({trainer.device, StreamHandle{table_.stream(communicator)}});
    while (!last.over()) pause();
  } catch (...) {  // NOLINT(bugprone-empty-catch): the device failed, so nothing runs on it
  }
  issued_.clear();
  table_.close(communicator);
}

void Owner::run() {
  Communicator* communicator = nullptr;
  try {
    ErrorText error{};
    if (table_.open(trainer.device.index, &communicator, &error) != nccl_module::kDone) {
      throw InvalidState(to_string(trainer.device) + ": " + error.text);
    }
    connect(communicator);
    serve(communicator);
  } catch (...) {  // whatever it is ends the group, and is thrown by every later call
    abort(std::current_exception());
  }
  if (communicator != nullptr) stop(communicator);
  const MutexLock lock(mutex_);
  quiet_ = true;
  changed_.notify_all();
}

}  // namespace meshstage::nccl
