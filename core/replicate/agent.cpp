#include <meshstage/core/replicate/agent.hpp>

#include <algorithm>
#include <iostream>
#include <sstream>
#include <tuple>
#include <utility>
#include <variant>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/replicate/agent_impl.hpp>

namespace meshstage {
namespace {

std::uint64_t tag_of_job(const std::string& job) {
  return digest64(std::as_bytes(std::span(job.data(), job.size())));
}

}  // namespace

std::string_view to_string(Source source) noexcept {
  switch (source) {
    case Source::kNothing:
      return "nothing";
    case Source::kOwnMemory:
      return "own memory";
    case Source::kHolderMemory:
      return "holder memory";
    case Source::kDisk:
      return "disk";
  }
  return "unknown";
}

std::string_view to_string(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::kComplete:
      return "complete";
    case Outcome::kFailed:
      return "failed";
    case Outcome::kSkipped:
      return "skipped";
  }
  return "unknown";
}

std::exception_ptr Loss::error() const {
  try {
    throw_error(kind, why, rank < 0 ? std::nullopt : std::optional<int>(rank));
  } catch (...) {
    return std::current_exception();
  }
}

Agent::Impl::Impl(AgentOptions options, std::shared_ptr<Store> store)
    : options_(std::move(options)),
      store_(std::move(store)),
      fs_(options_.fs != nullptr ? *options_.fs : real_file_system()),
      vault_(Vault::attach({.job = options_.job,
                            .rank = options_.rank,
                            .directory = options_.vault_directory,
                            .fs = options_.fs})),
      config_(protocol::make_config(options_.rank, options_.world_size, options_.holders, {},
                                    options_.shared.ranks)),
      wire_{tag_of_job(options_.job), options_.world_size},
      files_(fs_, options_.directory, options_.job, options_.rank),
      state_(protocol::make_state(config_)) {
  for (const int peer : data_peers()) {
    send_[peer] = std::make_unique<Worker>("ms-send");
    receive_[peer] = std::make_unique<Worker>("ms-recv");
  }
}

Agent::Impl::~Impl() {
  leave();
  persist_->stop();
  loop_->stop();
}

std::vector<int> Agent::Impl::data_peers() const {
  std::set<int> peers;
  const auto& holders = config_->holders;
  for (const int holder : holders[static_cast<std::size_t>(options_.rank)]) peers.insert(holder);
  for (const int ward : config_->wards) {
    peers.insert(ward);
    for (const int other : holders[static_cast<std::size_t>(ward)]) peers.insert(other);
  }
  for (const int other : config_->completers[static_cast<std::size_t>(options_.rank)]) {
    peers.insert(other);
  }
  peers.insert(config_->relying.begin(), config_->relying.end());
  peers.erase(options_.rank);
  return {peers.begin(), peers.end()};
}

std::string Agent::Impl::agreement() const {
  const auto digest = [](const std::vector<std::vector<int>>& lists) {
    std::string all;
    for (const auto& list : lists) {
      for (const int rank : list) all += std::to_string(rank) + ",";
      all += ";";
    }
    return digest64(std::as_bytes(std::span(all)));
  };
  std::ostringstream text;
  text << "blocks of " << options_.block_bytes << " bytes, holders " << std::hex
       << digest(config_->holders);
  if (!options_.shared.ranks.empty()) text << ", shared with " << digest(config_->completers);
  return text.str();
}

std::uint64_t Agent::Impl::highest_generation() const {
  std::uint64_t highest = vault_.max_generation();
  try {
    highest = std::max(highest, files_.highest_generation());
  } catch (const Error& e) {
    warn(std::string("the directory of images cannot be read: ") + e.what());
  }
  return highest;
}

// --- entering and leaving a generation -----------------------------------------------------------

void Agent::Impl::begin(const Generation& generation, Membership& membership) {
  leave();
  vault_.note_generation(generation.number);
  pace_.enter();
  {
    const std::lock_guard lock(mutex_);
    loss_.reset();
    command_ = {};
    recovered_ = false;
    in_flight_ = false;
  }
  generation_ = generation;
  generation_number_ = generation.number;
  membership_ = &membership;
  complete_in_generation_ = 0;
  const std::uint64_t epoch = ++epoch_;
  post_event(protocol::Formed{generation.number});
  if (!generation_.links) return;
  // Behind Formed in the loop's queue: whatever a faster peer has sent already waits in the links.
  generation_.links->set_handlers(
      {.on_message =
           [this, epoch](int peer, std::span<const std::byte> message) {
             post([this, epoch, peer, bytes = std::vector(message.begin(), message.end())] {
               if (epoch == epoch_) hear(peer, bytes);
             });
           },
       .on_lost =
           [this, epoch](int peer, LostReason reason, const std::string& detail) {
             post([this, epoch, peer, reason, detail] {
               if (epoch == epoch_) lost_link(peer, reason, detail);
             });
           }});
}

void Agent::Impl::leave() noexcept {
  if (membership_ == nullptr) return;
  const Loss cause = [this] {
    const std::lock_guard lock(mutex_);
    return loss_.value_or(Loss{ErrorKind::kCancelled, -1, "the generation was left"});
  }();
  generation_.abort(cause.error());
  pace_.leave();
  // The job that is being staged may wait for a slot, a sender for it: let go of both.
  post([this, error = cause.error()] {
    for (const auto& job : {pending_job_, job_}) {
      if (job && job->image.empty()) job->watermark.fail(error);
    }
    waiting_.clear();
  });
  loop_->drain();
  generation_.close();  // rule 8: after this nothing writes into a receive target
  for (auto& [peer, worker] : send_) worker->drain();
  for (auto& [peer, worker] : receive_) worker->drain();
  copy_->drain();
  for (int i = 0; i < 2; ++i) {  // what has arrived may still be verified
    loop_->drain();
    verify_->drain();
  }
  loop_->drain();
  ++epoch_;
  loop_->post([this, error = cause.error()] {
    for (const auto& job : {std::exchange(pending_job_, nullptr), std::exchange(job_, nullptr)}) {
      if (!job) continue;
      job->accepted.set_error(error);
      job->staged.set_error(error);
      job->outcome.set_error(error);
    }
    incoming_.clear();
    announced_.clear();
    starts_.clear();
    asked_.clear();
    wants_.clear();
    completions_.clear();
    refused_fetches_.clear();
    waiting_.clear();
    aborted_.clear();
  });
  loop_->drain();
  membership_ = nullptr;
  generation_ = {};
}

// --- the loop ------------------------------------------------------------------------------------

void Agent::Impl::post(std::function<void()> task) {
  loop_->post([this, epoch = epoch_.load(), run = std::move(task)] {
    if (epoch == epoch_) run();
  });
}

void Agent::Impl::post_event(protocol::Event event) {
  post([this, e = std::move(event)] { feed(e); });
}

void Agent::Impl::feed(const protocol::Event& event) {
  std::vector<protocol::Action> actions;
  protocol::transition(state_, event, actions);
  for (const auto& action : actions) {
    std::visit([this](const auto& what) { perform(what); }, action);
  }
}

void Agent::Impl::say(int to, std::vector<std::byte> message) const {
  generation_.links->send(to, protocol::with_digest(std::move(message)));
}

void Agent::Impl::hear(int from, std::span<const std::byte> received) {
  const auto message = protocol::without_digest(received);
  if (!message) {
    // What it was is not known, so somebody would wait for it for ever. Nobody is dead.
    lose(-1, ErrorKind::kPeerLost,
         "a control message from rank " + std::to_string(from) + " to rank " +
             std::to_string(options_.rank) + " was damaged on its way");
    return;
  }
  const std::span<const std::byte> bytes = *message;
  try {
    if (exchange::is_stream_start(bytes)) {
      const auto start = exchange::decode_stream_start(bytes, from, options_.world_size);
      check_generation("stream start", from, start.generation);
      stream_in(from, start);
      return;
    }
    if (exchange::is_want(bytes)) {
      hear_want(from, bytes);
      return;
    }
    protocol::Message decoded = protocol::decode(wire_, from, bytes);
    check_generation(protocol::name_of(decoded.body), from, decoded.generation);
    feed(protocol::Received{from, std::move(decoded)});
  } catch (const CorruptData& e) {
    warn(std::string("a message was refused: ") + e.what());
  }
}

/// Links belong to one generation: nothing of another one comes over them.
void Agent::Impl::check_generation(const char* what, int from, std::uint64_t generation) const {
  if (generation == generation_.number) return;
  throw make_error<CorruptData>(std::string(what) + " from rank " + std::to_string(from) +
                                    ": generation " + std::to_string(generation) + ", this is " +
                                    std::to_string(generation_.number),
                                from);
}

void Agent::Impl::lost_link(int peer, LostReason reason, const std::string& detail) {
  if (closing_) return;
  const auto& [parent, children] = std::tie(config_->parent, config_->children);
  const bool neighbour =
      peer == parent || std::find(children.begin(), children.end(), peer) != children.end();
  if (reason == LostReason::kClosed && !neighbour) {
    // An orderly goodbye overtakes what travels along the tree: a last outcome, or Finish. Whoever
    // left too early is told of by its neighbours, behind these.
    return;
  }
  switch (reason) {
    case LostReason::kSilent:
      lose(peer, ErrorKind::kPeerSilent, "was silent: " + detail);
      return;
    case LostReason::kEndOfFile:
      lose(peer, ErrorKind::kPeerLost, "died: " + detail);
      return;
    case LostReason::kProtocol:
      // No rank is to blame, and no place to be taken: both ends live.
      lose(-1, ErrorKind::kPeerLost,
           "a broken link between rank " + std::to_string(options_.rank) + " and rank " +
               std::to_string(peer) + ": " + detail + "; nobody died, all rejoin");
      return;
    case LostReason::kClosed:
      lose(peer, ErrorKind::kPeerLost, "left the job");
      return;
  }
}

void Agent::Impl::lose(int peer, ErrorKind kind, const std::string& why) {
  if (state_.mode == protocol::Mode::kBroken || state_.mode == protocol::Mode::kFinished) return;
  protocol::Broken broken{peer, kind, why};
  // An end-of-file may be the second sign of a death that somebody else saw first (rule 7).
  try {
    if (const auto cause = membership_->cause_of(generation_.number);
        cause && cause->rank != peer) {
      broken = {cause->rank, ErrorKind::kPeerLost, cause->reason};
    }
  } catch (const Error& e) {
    warn(std::string("cannot read the cause of a death: ") + e.what());
  }
  feed(broken);
}

void Agent::Impl::log(LogLine::Level level, const std::string& text) const {
  LogLine line{level, "meshstage: job " + options_.job + ", generation " +
                          std::to_string(generation_number_) + ", rank " +
                          std::to_string(options_.rank) + ": " + text};
  if (options_.log) {
    options_.log(line);
  } else if (level == LogLine::Level::kWarning) {
    std::cerr << line.text + "\n";
  }
}

void Agent::Impl::reach(protocol::Point point, ImageId id, int peer, std::uint64_t chunk,
                        std::uint64_t chunks) const {
  if (!options_.observer) return;
  options_.observer({.point = point,
                     .name = to_string(point),
                     .rank = options_.rank,
                     .generation = generation_number_,
                     .id = id,
                     .peer = peer,
                     .chunk = chunk,
                     .chunks = chunks});
}

ImageIdentity Agent::Impl::identity(int owner, ImageId id, ImageId base) const {
  return {options_.job, owner, options_.world_size, id, base};
}

transfer::Shape Agent::Impl::shape_of(const protocol::ImageSizes& sizes, bool with_manifest,
                                      bool replica) const {
  return {sizes.image_bytes,
          sizes.manifest_bytes,
          options_.block_bytes,
          with_manifest,
          replica ? sizes.shared_bytes : 0,
          sizes.shares};
}

transfer::Link Agent::Impl::link_to(int peer, ImageId id, protocol::Point point) {
  return {*generation_.data, peer, 0, options_.deadline,
          [this, peer, id, point](std::uint64_t piece, std::uint64_t pieces) {
            reach(point, id, peer, piece, pieces);
          }};
}

void Agent::Impl::signal() {
  const std::lock_guard lock(mutex_);
  changed_.notify_all();
}

// --- actions of every phase ----------------------------------------------------------------------

void Agent::Impl::perform(const protocol::Send& action) {
  say(action.to, protocol::encode(wire_, options_.rank, action.message));
}

void Agent::Impl::perform(const protocol::AbortTransfers&) {
  if (generation_.data) {
    generation_.data->abort(Loss{ErrorKind::kPeerLost, -1, "the generation broke"}.error());
  }
  waiting_.clear();
}

void Agent::Impl::perform(const protocol::NoteDeath& action) {
  try {
    membership_->declare_death(action.generation, action.rank, action.why);
  } catch (const Error& e) {
    warn("cannot note the death of rank " + std::to_string(action.rank) + ": " + e.what());
  }
}

void Agent::Impl::perform(const protocol::ReportLost& action) {
  Loss loss{action.kind, action.rank, describe(DeathCause{action.rank, action.why})};
  if (store_failed_) {
    loss.kind = ErrorKind::kIo;
    loss.why = action.why;
  } else if (action.rank == options_.rank) {
    loss.kind = ErrorKind::kInvalidState;
    loss.why = "fenced: the others went on without rank " + std::to_string(action.rank) +
               " (this process " + action.why + "); end it, its replacement has its place";
  }
  for (const auto& job : {pending_job_, job_}) {
    if (!job) continue;
    job->accepted.set_error(loss.error());
    job->outcome.set_error(loss.error());
    if (job->image.empty()) job->staged.set_error(loss.error());
    job->decided = true;
  }
  const auto error = loss.error();
  {
    const std::lock_guard lock(mutex_);
    if (!loss_) loss_ = std::move(loss);
    changed_.notify_all();
  }
  generation_.abort(error);
}

void Agent::Impl::perform(const protocol::Refuse& action) {
  switch (action.reason) {
    case protocol::Refuse::Reason::kBusy:
    case protocol::Refuse::Reason::kNotReady:
    case protocol::Refuse::Reason::kNotAbove:
      if (pending_job_) {
        // The generation may have broken after stage() looked.
        const std::lock_guard lock(mutex_);
        pending_job_->accepted.set_error(
            loss_ ? loss_->error()
                  : std::make_exception_ptr(InvalidState("stage() refused: " + action.why)));
        pending_job_.reset();
      } else {
        warn(action.why);
      }
      return;
    case protocol::Refuse::Reason::kMalformed:
      warn("refused: " + action.why);
      return;
    case protocol::Refuse::Reason::kStale:
      log(LogLine::Level::kInfo, "ignored: " + action.why);
      return;
  }
}

void Agent::Impl::perform(const protocol::Reached& action) { reach(action.point, action.id); }

void Agent::Impl::perform(const protocol::Prune& action) {
  persist_->post([this, older = action.older_than] {
    try {
      files_.prune_older(older);
    } catch (const Error& e) {
      warn(std::string("cannot remove older images: ") + e.what());
    }
  });
}

void Agent::Impl::perform(const protocol::RemoveVault&) {
  closing_ = true;
  try {
    vault_.remove_all();
  } catch (const Error& e) {
    warn(std::string("cannot remove the vault: ") + e.what());
  }
  const std::lock_guard lock(mutex_);
  finished_ = true;
  changed_.notify_all();
}

// --- the public face -----------------------------------------------------------------------------

Agent::Agent(AgentOptions options, std::shared_ptr<Store> store)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(store))) {}
Agent::~Agent() = default;
std::string Agent::agreement() const { return impl_->agreement(); }
std::vector<int> Agent::data_peers() const { return impl_->data_peers(); }
std::uint64_t Agent::highest_generation() const { return impl_->highest_generation(); }
void Agent::begin(const Generation& generation, Membership& membership) {
  impl_->begin(generation, membership);
}
void Agent::leave() noexcept { impl_->leave(); }
Recovered Agent::recover(Value& state) { return impl_->recover(state); }
Staging Agent::stage(const Value& state, std::uint64_t step) { return impl_->stage(state, step); }
void Agent::finish() { impl_->finish(); }
const std::vector<int>& Agent::wards() const noexcept { return impl_->wards(); }
Replica Agent::held(int ward, const NodeRegistry& registry) { return impl_->held(ward, registry); }
void Agent::throw_if_lost() const { impl_->throw_if_lost(); }
Stats Agent::stats() const { return impl_->stats(); }

}  // namespace meshstage
