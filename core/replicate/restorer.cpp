#include <meshstage/core/replicate/restorer.hpp>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>

namespace meshstage::replicate {
Restorer::Restorer(Engine& engine, StoreWorker& store, Verifier& verifier, Streams& streams,
                   Inbox& inbox)
    : engine_(engine), store_(store), verifier_(verifier), streams_(streams), inbox_(inbox) {
  engine_.reads.when_begun([this] { look_after(Deadline::length(engine_.options.deadline)); });
}

void Restorer::look_after(Reads::Clock::duration length) {
  engine_.loop.post_at(Deadline::after(length), [this] { look_at_reads(); });
}

/// A rank that reads is waited for. So this rank alone finds that nothing comes any more, and says
/// so: once in a generation, after which the protocol takes no more of it.
void Restorer::look_at_reads() {
  if (!engine_.reads.still_watched()) return;
  const auto deadline = Deadline::length(engine_.options.deadline);
  const auto slowest = engine_.reads.slowest();
  const auto silence = slowest ? slowest->silence : Reads::Clock::duration::zero();
  if (silence < deadline) return look_after(deadline - silence);
  engine_.feed(protocol::ReadStuck{
      std::string("has ") + slowest->verb + " nothing of " + slowest->path + " for " +
      std::to_string(engine_.options.deadline.count()) + " ms, after " + how_far(*slowest) +
      ": its disk hangs, or needs a longer `deadline`; look at that disk, or end the process"});
  look_after(deadline);
}

void Restorer::verify_slots() {
  forget_found();
  own_source_ = Source::kOwnMemory;
  own_source_rank_ = engine_.rank;
  const auto notes = std::make_shared<JobNotes>();
  store_.ask("reading the Store's notes of the job", reading_notes(engine_.options.job, notes),
             Deadline::after(engine_.options.deadline),
             [this, notes, generation = engine_.present](const StoreWorker::Answer& answer) {
               if (generation != engine_.present) return;
               if (answer.error) {
                 return engine_.lose_store("cannot read the Store: " + text_of(answer.error));
               }
               verifier_.slots(*notes, [this](const protocol::SlotsVerified& verified) {
                 in_slots_ = verified.claims;
                 engine_.feed(verified);
               });
             });
}

void Restorer::verify_disk(const protocol::VerifyDisk& action) {
  if (action.up_to.exists()) return engine_.feed(found_again(action));
  verifier_.disk(action, [this](const Verifier::Found& found) {
    found_ = found;
    engine_.feed(protocol::FilesVerified{found.claims, found.evidence, found.damage, found.named,
                                         found.room});
  });
}

protocol::FilesVerified Restorer::found_again(const protocol::VerifyDisk& action) const {
  protocol::FilesVerified again;
  for (const auto* claims : {&in_slots_, &found_.claims}) {
    std::copy_if(claims->begin(), claims->end(), std::back_inserter(again.claims),
                 [&](const protocol::Claim& claim) {
                   return protocol::asked_again(claim.id, action.newer_than, action.up_to);
                 });
  }
  again.evidence = found_.evidence;
  return again;
}

void Restorer::forget_found() {
  in_slots_.clear();
  found_ = {};
}

void Restorer::keep_found(ImageId id) {
  auto& claims = found_.claims;
  auto& places = found_.places;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < claims.size(); ++i) {
    if (claims[i].id != id) continue;
    std::swap(claims[kept], claims[i]);
    std::swap(places[kept++], places[i]);
  }
  claims.resize(kept);
  places.resize(kept);
}

void Restorer::publish_old(const protocol::PublishOld& action) {
  // Of this number of ranks each rank's own slot has its image, whatever strays have.
  const bool of_this_world = action.step.world_size == engine_.world_size;
  if (of_this_world && engine_.keeps_old_in_memory) {
    return engine_.feed(protocol::OldPublished{{}, {engine_.rank}});
  }
  engine_.report.info("making files of what lies here of " + to_string(action.step.id) + " of " +
                      std::to_string(action.step.world_size) + " ranks");
  verifier_.publish_old(action, of_this_world ? Verifier::Found{} : found_,
                        [this](const protocol::OldPublished& published) {
                          if (!published.failed.empty()) engine_.report.warn(published.failed);
                          engine_.feed(published);
                        });
}

void Restorer::find_old(const protocol::FindOld& action) {
  if (action.prove) {
    engine_.report.info(
        "rank 0 proves the files of another number of ranks alone: not each of them "
        "was found sound by the rank whose part it is");
  }
  verifier_.find_old(action, [this](const protocol::OldFound& found) { engine_.feed(found); });
}

std::optional<Verifier::Here> Restorer::place_of(const protocol::Claim& claim) const {
  const auto it = std::find(found_.claims.begin(), found_.claims.end(), claim);
  if (it == found_.claims.end()) return std::nullopt;
  return found_.places[static_cast<std::size_t>(it - found_.claims.begin())];
}

void Restorer::fetch(const protocol::Fetch& action) {
  const protocol::Claim& source = action.source;
  if (source.owner == engine_.rank) {
    const bool here = source.place == protocol::Place::kStray && source.at == engine_.rank;
    own_source_ = here ? Source::kOwnMemory : Source::kHolderMemory;
    if (is_file(source.place)) own_source_ = Source::kDisk;
    own_source_rank_ = source.at;
  }
  keep_found(source.id);
  inbox_.fetch(action, place_of(source));
}

void Restorer::serve(const protocol::Serve& action) {
  const protocol::Claim& source = action.source;
  const auto fail = [this, owner = source.owner](ErrorKind kind, const std::string& why) {
    engine_.feed(protocol::FetchFailed{owner, kind, why});
  };
  const auto here = is_slot(source.place) ? Verifier::Here{} : place_of(source);
  if (!here) return fail(ErrorKind::kNotFound, "the image was not verified by this rank");
  verifier_.open(
      source, *here,
      [this, action, file = here->file](const Verifier::Source& image) {
        const protocol::Claim& claim = action.source;
        Outgoing stream = outgoing_bytes(image.bytes, image.keep);
        stream.to = action.to;
        stream.start = exchange::stream_start(
            claim.owner, claim.id,
            engine_.shape_of(claim.sizes, true, sends_replica(claim, action.to)));
        if (!file.empty()) {
          stream.wait_final = reading_ahead(engine_.reads, file.string(), image.bytes);
        }
        stream.over_bridge = engine_.bridge.links_to(action.to) != nullptr;
        streams_.send(std::move(stream), [] {});
      },
      fail);
}

void Restorer::check_structure(const protocol::CheckStructure& action) {
  RecoverCommand command;
  command.kind = RecoverCommand::Kind::kCheck;
  command.slot = action.slot;
  engine_.gate.command(std::move(command));
}

void Restorer::restore(const protocol::RestoreTrainer& action) {
  inbox_.established();
  verifier_.leave_files();
  forget_found();  // and the stray vaults' mappings
  RecoverCommand command;
  command.kind = RecoverCommand::Kind::kRestore;
  command.slot = action.slot;
  command.id = action.id;
  command.source = own_source_;
  command.from_rank = own_source_rank_;
  engine_.gate.command(std::move(command));
}

void Restorer::nothing(const protocol::OldStep& old) {
  verifier_.leave_files();
  RecoverCommand command;
  command.old = old;
  for (std::size_t i = 0; i < found_.places.size(); ++i) {
    const protocol::Claim& claim = found_.claims[i];
    const Verifier::Here& here = found_.places[i];
    if (here.of_other && engine_.options.any_world) command.old_files.push_back(here.of_other);
    if (claim.place != protocol::Place::kKept || claim.needs_lenders()) continue;
    command.old_files.push_back(
        MappedFile::part_of(here.stray->path, here.stray->bytes, here.stray->keep));
  }
  forget_found();
  command.kind = RecoverCommand::Kind::kNothing;
  engine_.gate.command(std::move(command));
}

void Restorer::reassemble(const protocol::Reassemble& action) {
  inbox_.established();
  verifier_.leave_files();
  forget_found();
  engine_.report.info("the trainers cut their states otherwise than " + to_string(action.step.id) +
                      ", which they assemble: " + action.mismatch.why);
  RecoverCommand command;
  command.kind = RecoverCommand::Kind::kNothing;
  command.old = action.step;
  command.failure = action.mismatch;
  engine_.gate.command(std::move(command));
}

void Restorer::left_behind(const protocol::LeftBehind& action) {
  const std::string world = std::to_string(action.step.world_size);
  engine_.report.warn(to_string(action.step.id) + " of " + world +
                      " ranks is newer than what is gone on from, " + to_string(action.taken) +
                      ": " + action.why + "; to keep it, end this job now, start it with " + world +
                      " ranks and let it finish()");
}

void Restorer::failed(const protocol::RecoverFailed& action) {
  verifier_.leave_files();
  // The trainer may wake between the loss and the command: both are the same error.
  engine_.gate.lose(
      {action.failure.kind, action.failure.rank, action.failure.why, action.failure.path});
  RecoverCommand command;
  command.kind = RecoverCommand::Kind::kFailed;
  command.failure = action.failure;
  engine_.gate.command(std::move(command));
}

}  // namespace meshstage::replicate
