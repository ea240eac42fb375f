// What a holder has of its wards, for the trainer to look at.
#include <algorithm>
#include <memory>
#include <utility>

#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/memory/fast_copy.hpp>
#include <meshstage/core/replicate/agent_impl.hpp>

namespace meshstage {
namespace {

/// Fills in what a ward's replica leaves out, as far as this rank has it. Throws InvalidState
/// naming a tensor that another rank has.
void complete_replica(const ReadLease& own, const ImageInfo& info, std::span<std::byte> image) {
  const auto parts = shared_parts(image, info);
  for (const auto& part : parts) {
    const int ward = info.identity.rank;
    if (part.rank != own.key().owner_rank) {
      throw make_error<InvalidState>("the replica of rank " + std::to_string(ward) +
                                         " leaves out " + std::to_string(part.pieces.size()) +
                                         " tensors that rank " + std::to_string(part.rank) +
                                         " has, \"" + part.pieces.front().name +
                                         "\" the first; only a recovery puts them together",
                                     ward, info.identity.id.step, part.pieces.front().name);
    }
    std::vector<std::string> names;
    for (const auto& piece : part.pieces) names.push_back(piece.name);
    const auto ranges = find_ranges(own.image(), names);
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const auto& piece = part.pieces[i];
      if (!ranges[i] || ranges[i]->bytes != piece.bytes) {
        throw make_error<CorruptData>("this rank has no " + piece.name + " of " +
                                          std::to_string(piece.bytes) + " bytes to complete rank " +
                                          std::to_string(ward) + "'s replica with",
                                      ward, info.identity.id.step, piece.name);
      }
      fast_copy(image.subspan(piece.offset, piece.bytes),
                own.image().subspan(ranges[i]->offset, piece.bytes));
    }
  }
  clear_shared_padding(parts, info, image);
}

}  // namespace

Replica Agent::Impl::held(int ward, const NodeRegistry& registry) {
  const auto& all = config_->wards;
  if (!std::binary_search(all.begin(), all.end(), ward)) {
    std::string names;
    for (const int w : all) names += (names.empty() ? "" : ", ") + std::to_string(w);
    throw InvalidArgument("rank " + std::to_string(options_.rank) + " holds no replica of rank " +
                          std::to_string(ward) +
                          (names.empty() ? "; it holds none" : "; its wards are " + names));
  }
  {
    const std::lock_guard lock(mutex_);
    if (finished_) throw InvalidState("held() after finish()");
    if (loss_) std::rethrow_exception(loss_->error());
    if (!recovered_) throw InvalidState("held() before recover() in this generation");
  }
  // The agent's thread knows which step is complete, and gives the slots to nobody meanwhile.
  using Leases = std::vector<std::shared_ptr<ReadLease>>;  // the replica; and, to complete it, ours
  Promise<Leases> found;
  Work<Leases> leases_found = found.work();
  loop_->post([this, ward, found]() mutable {
    std::exception_ptr error;  // told outside the catch: who gets it is the last to have it
    try {
      Leases leases;
      for (const int owner : {ward, options_.rank}) {
        for (const int index : {0, 1}) {
          const SlotKey key{owner, index};
          const SlotInfo info = vault_.slot(key);
          if (info.state == SlotState::kSealed && state_.base.exists() &&
              info.image.identity.id == state_.base) {
            leases.push_back(std::make_shared<ReadLease>(vault_.read(key)));
            break;
          }
        }
        if (leases.empty()) {
          throw NotFound("no complete step of rank " + std::to_string(ward) + " is held yet");
        }
        if (leases.front()->info().shared_bytes == 0) break;
      }
      for (const auto& lease : leases) hold(lease->key());
      found.set_value(std::move(leases));
      return;
    } catch (const Error&) {
      error = std::current_exception();
    }
    found.set_error(std::move(error));
  });
  const Leases leases = leases_found.get();
  const std::shared_ptr<void> at_end(nullptr, [this, leases](void*) {
    loop_->post([this, leases] {
      for (const auto& lease : leases) {
        const SlotKey key = lease->key();
        lease->release();
        release(key);
      }
    });
  });
  const auto replica = leases.front()->image();
  const ImageInfo info = leases.front()->info();
  const auto copy = Storage::allocate(info.image_bytes);
  place_replica(replica, info, copy.bytes());
  if (info.shared_bytes != 0) {
    if (leases.size() < 2) throw NotFound("no image of this rank's own of that step is there");
    complete_replica(*leases.back(), info, copy.bytes());
  }
  (void)verify_image(copy.bytes());
  return {ward, info.identity.id,
          decode_image(copy.bytes(), std::make_shared<Storage>(copy), registry,
                       StorageTraits{.read_only = false})};
}

}  // namespace meshstage
