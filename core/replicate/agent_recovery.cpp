// Recovering: what this rank has, what it fetches and serves, and the trainer's state dict.
#include <algorithm>
#include <charconv>
#include <utility>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/memory/fast_copy.hpp>
#include <meshstage/core/replicate/agent_impl.hpp>

namespace meshstage {
namespace {

/// "<generation> <step>", as NoteFirstComplete wrote it.
ImageId parse_note(const std::string& text) {
  ImageId id;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, id.generation);
  if (first.ec == std::errc() && first.ptr != end && *first.ptr == ' ' &&
      std::from_chars(first.ptr + 1, end, id.step).ec == std::errc()) {
    return id;
  }
  throw make_error<CorruptData>("the Store's note of the first complete step reads \"" + text +
                                "\"");
}

/// What a slot holds, proven just now. Throws CorruptData.
protocol::Claim claim_of(const ReadLease& lease, int at) {
  const SlotKey key = lease.key();
  const bool own = key.owner_rank == at;
  const ImageInfo verified = own ? verify_image(lease.image()) : verify_replica(lease.image());
  if (verified != lease.info()) throw CorruptData("header and image disagree");
  return protocol::claim_of(verified, checked_shares(lease.image(), verified), at,
                            own ? protocol::Place::kOwnSlot : protocol::Place::kHeldSlot,
                            key.index);
}

/// Adds what is wrong with one image to what is wrong with those before it.
void add_damage(std::string& to, const std::string& what) { to += (to.empty() ? "" : "; ") + what; }

/// Holders are sent replicas, owners what there is.
bool sends_replica(const protocol::Claim& source, int to) {
  return to != source.owner || source.needs_others();
}

bool is_file(const protocol::Claim& claim) {
  return claim.place == protocol::Place::kOwnFile || claim.place == protocol::Place::kHeldFile;
}

}  // namespace

// --- the trainer's thread ------------------------------------------------------------------------

Recovered Agent::Impl::recover(Value& state) {
  const auto deadline = std::chrono::steady_clock::now() + options_.recover_deadline;
  ReadLease image;  // from the comparison to the restoring, which then asks the system for nothing
  while (true) {
    RecoverCommand now;
    {
      std::unique_lock lock(mutex_);
      if (finished_) throw InvalidState("recover() after finish()");
      if (recovered_) {
        throw InvalidState("this generation has recovered; rejoin() before the next recover()");
      }
      using Kind = RecoverCommand::Kind;
      if (!changed_.wait_until(lock, deadline,
                               [this] { return loss_ || command_.kind != Kind::kNone; })) {
        throw PeerSilent("recover() did not end within " +
                         std::to_string(options_.recover_deadline.count()) +
                         " ms; does every rank call it?");
      }
      if (command_.kind == Kind::kNone ||
          (loss_ && command_.kind != Kind::kRestore && command_.kind != Kind::kFailed)) {
        std::rethrow_exception(loss_->error());
      }
      now = std::exchange(command_, {});
    }
    switch (now.kind) {
      case RecoverCommand::Kind::kNone:
        break;
      case RecoverCommand::Kind::kCheck:
        try {
          image = vault_.read({options_.rank, now.slot});
          protocol::StructureChecked answer;
          if (const auto difference = compare_structure(image.image(), state)) {
            answer.path = difference->path;
            answer.mismatch = difference->describe() + " (staged as rank " +
                              std::to_string(options_.rank) + " of " +
                              std::to_string(image.info().identity.world_size) +
                              " ranks, recovered by " + std::to_string(options_.world_size) + ")";
          }
          if (answer.mismatch.empty()) require_writable(state);
          post_event(std::move(answer));
        } catch (const Error& e) {  // the others wait for this rank: they hear of it, too
          post_event(protocol::FetchFailed{options_.rank, e.kind(), e.what()});
        }
        break;
      case RecoverCommand::Kind::kRestore:
      case RecoverCommand::Kind::kNothing: {
        Recovered result;
        result.generation = generation_number_;
        if (now.kind == RecoverCommand::Kind::kRestore) {
          restore_into(image.image(), state);
          result.id = now.id;
          result.step = now.id.step;
        }
        image.release();
        try {
          vault_.free_superseded();
        } catch (const SystemError& e) {  // tried again by the next recover(), or finish()
          warn(std::string("what a replaced process left cannot be removed: ") + e.what());
        }
        const std::lock_guard lock(mutex_);
        if (now.kind == RecoverCommand::Kind::kRestore) {
          result.source = recovered_source_;
          result.from_rank = recovered_from_;
        }
        recovered_ = true;
        return result;
      }
      case RecoverCommand::Kind::kFailed: {
        const protocol::Failure& f = now.failure;
        throw_error(f.kind, f.why, f.rank < 0 ? std::nullopt : std::optional<int>(f.rank), {},
                    f.path);
      }
    }
  }
}

// --- the agent's thread --------------------------------------------------------------------------

void Agent::Impl::command(RecoverCommand command) {
  const std::lock_guard lock(mutex_);
  command_ = std::move(command);
  changed_.notify_all();
}

void Agent::Impl::perform(const protocol::VerifySlots&) {
  const auto place_of = [me = options_.rank](SlotKey key) {
    const bool own = key.owner_rank == me;
    return "rank " + std::to_string(me) + "'s " + (own ? "own image" : "replica of rank ") +
           (own ? "" : std::to_string(key.owner_rank)) + " in slot " + std::to_string(key.index);
  };
  found_ = {};
  own_source_ = Source::kOwnMemory;
  own_source_rank_ = options_.rank;
  verify_->post([this, place_of] {
    protocol::SlotsVerified result;
    try {
      if (const auto note = store_->get(note_key())) result.evidence = parse_note(*note);
    } catch (const Error& e) {
      post([this, why = std::string(e.what())] {
        store_failed_ = true;
        feed(
            protocol::Broken{options_.rank, ErrorKind::kPeerLost, "cannot read the Store: " + why});
      });
      return;
    }
    for (const auto& [key, info] : vault_.slots()) {
      result.evidence = std::max(result.evidence, info.image.identity.base);
      if (!info.damaged.empty()) {
        const std::string what = place_of(key) + ": the header is not trusted: " + info.damaged;
        warn(what);
        add_damage(result.damage, what);
      }
      if (info.state != SlotState::kSealed) continue;
      try {
        result.claims.push_back(claim_of(vault_.read(key), options_.rank));
      } catch (const Error& e) {
        const std::string what = place_of(key) + ": " + e.what();
        warn("not used: " + what);
        add_damage(result.damage, what);
      }
    }
    post_event(std::move(result));
  });
}

void Agent::Impl::perform(const protocol::VerifyDisk& action) {
  verify_->post([this, newer = action.newer_than] {
    Persistence::Found found;
    std::string damage;
    try {
      found = files_.verify(newer, [&](const std::string& text) {
        warn(text);
        add_damage(damage, text);
      });
    } catch (const Error& e) {
      warn(std::string("the directory of images cannot be read: ") + e.what());
    }
    post([this, found, damage] {
      found_ = found;
      feed(protocol::FilesVerified{found.claims, found.newest_named, damage});
    });
  });
}

void Agent::Impl::perform(const protocol::Fetch& action) {
  const protocol::Claim& source = action.source;
  if (source.owner == options_.rank) {
    own_source_ = is_file(source) ? Source::kDisk : Source::kHolderMemory;
    own_source_rank_ = source.at;
  }
  if (source.at != options_.rank) {
    ask_for(source.at, source.owner, source.id,
            shape_of(source.sizes, true, sends_replica(source, options_.rank)));
  }
  when_free([this, action]() -> bool {
    const protocol::Claim& from = action.source;
    const SlotKey key{from.owner, action.slot};
    if (in_use(key)) return false;
    Incoming in;
    in.from = from.at;
    in.owner = from.owner;
    in.slot = action.slot;
    in.id = from.id;
    in.base = from.base;
    in.sizes = from.sizes;
    in.fetch = true;
    in.in_parts = from.owner == options_.rank && from.needs_others();
    for (const auto& share : from.left_out) in.completers.push_back(share.rank);
    in.expected = from.image_digest;
    const std::uint64_t bytes =
        from.sizes.image_bytes - (from.owner == options_.rank ? 0 : from.sizes.shared_bytes);
    try {
      in.lease = vault_.begin_write(key, identity(from.owner, from.id, from.base), bytes);
    } catch (const Error& e) {
      refused_fetches_.insert(from.owner);
      take_starts(from.at);
      post_event(protocol::FetchFailed{from.owner, e.kind(), e.what()});
      return true;
    }
    refused_fetches_.erase(from.owner);
    incoming_.insert_or_assign(from.owner, std::move(in));
    if (from.at == options_.rank) {
      load_from_disk(action);
    } else {
      take_starts(from.at);
    }
    return true;
  });
}

void Agent::Impl::load_from_disk(const protocol::Fetch& action) {
  const auto claim = std::find(found_.claims.begin(), found_.claims.end(), action.source);
  const Incoming& in = incoming_.at(action.source.owner);
  if (claim == found_.claims.end()) {
    post([this, owner = in.owner, id = in.id] {
      not_arrived(owner, id, ErrorKind::kNotFound, "its file was not verified by this rank");
    });
    return;
  }
  const auto path = found_.paths[static_cast<std::size_t>(claim - found_.claims.begin())];
  verify_->post(
      [this, path, target = in.lease.image(), sizes = in.sizes, owner = in.owner, id = in.id] {
        try {
          const auto file = MappedFile::open(fs_, path);
          if (file->bytes().size() != sizes.image_bytes)
            throw CorruptData(path.string() + " changed");
          const std::uint64_t left_out = sizes.image_bytes - target.size();
          fast_copy(target.first(sizes.manifest_bytes), file->bytes().first(sizes.manifest_bytes));
          fast_copy(target.subspan(sizes.manifest_bytes),
                    file->bytes().subspan(sizes.manifest_bytes + left_out));
          const ImageInfo info = left_out == 0 ? verify_image(target) : verify_replica(target);
          post([this, owner, id, info] { arrived(owner, id, info); });
        } catch (const Error& e) {
          post([this, owner, id, kind = e.kind(), why = std::string(e.what())] {
            not_arrived(owner, id, kind, why);
          });
        }
      });
}

void Agent::Impl::perform(const protocol::Serve& action) {
  const protocol::Claim& source = action.source;
  const auto fail = [&](const Error& e) {
    post_event(protocol::FetchFailed{source.owner, e.kind(), e.what()});
  };
  try {
    // The sender keeps the bytes in place: a lease on the slot, or the mapped file.
    std::shared_ptr<const void> owner;
    std::span<const std::byte> bytes;
    if (is_file(source)) {
      const auto claim = std::find(found_.claims.begin(), found_.claims.end(), source);
      if (claim == found_.claims.end()) throw NotFound("the file was not verified by this rank");
      const auto file = MappedFile::open(
          fs_, found_.paths[static_cast<std::size_t>(claim - found_.claims.begin())]);
      bytes = file->bytes();
      owner = file;
    } else {
      const auto lease = std::make_shared<ReadLease>(vault_.read({source.owner, source.slot}));
      bytes = lease->image();
      owner = lease;
    }
    if (bytes.size() !=
        source.sizes.image_bytes - (source.needs_others() ? source.sizes.shared_bytes : 0)) {
      throw CorruptData("the image changed its size");
    }
    stream_out(
        action.to, source.owner, source.id,
        shape_of(source.sizes, true, sends_replica(source, action.to)),
        [bytes, owner] { return bytes; }, [](std::uint64_t) {}, [] {});
  } catch (const Error& e) {
    fail(e);
  }
}

void Agent::Impl::perform(const protocol::CheckStructure& action) {
  command({RecoverCommand::Kind::kCheck, action.slot, {}, {}});
}

void Agent::Impl::perform(const protocol::RestoreTrainer& action) {
  {
    const std::lock_guard lock(mutex_);
    recovered_source_ = own_source_;
    recovered_from_ = own_source_rank_;
  }
  for (const int peer : data_peers()) take_starts(peer);  // none that is left will be asked for
  command({RecoverCommand::Kind::kRestore, action.slot, action.id, {}});
}

void Agent::Impl::perform(const protocol::RecoveredNothing&) {
  command({RecoverCommand::Kind::kNothing, 0, {}, {}});
}

void Agent::Impl::perform(const protocol::RecoverFailed& action) {
  protocol::Failure failure = action.failure;
  {
    const std::lock_guard lock(mutex_);
    if (!loss_) loss_ = Loss{failure.kind, failure.rank, failure.why};
  }
  command({RecoverCommand::Kind::kFailed, 0, {}, std::move(failure)});
}

}  // namespace meshstage
