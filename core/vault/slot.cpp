#include <meshstage/core/vault/slot.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/state_impl.hpp>

#include <utility>

namespace meshstage {

WriteLease& WriteLease::operator=(WriteLease&& other) noexcept {
  if (this != &other) {
    abandon();
    vault_ = std::move(other.vault_);
    slot_ = std::move(other.slot_);
    key_ = other.key_;
    identity_ = std::move(other.identity_);
    bytes_ = other.bytes_;
    previous_ = std::move(other.previous_);
  }
  return *this;
}

WriteLease::~WriteLease() { abandon(); }

std::span<std::byte> WriteLease::image() const noexcept {
  return slot_ ? slot_->image().first(bytes_) : std::span<std::byte>();
}

void WriteLease::seal(const ImageInfo& info) {
  if (!slot_) throw InvalidState("seal() on a write lease that is over");
  if (info.identity != identity_ || !detail::has_sound_sizes(info) ||
      stored_bytes(key_, vault_->options.rank, info) != bytes_) {
    throw InvalidArgument("the slot was begun for " + to_string(identity_) + " of " +
                          std::to_string(bytes_) + " bytes, not for " + to_string(info.identity) +
                          " of " + std::to_string(info.image_bytes) +
                          (info.borrowed_bytes == 0
                               ? ""
                               : ", " + std::to_string(info.borrowed_bytes) + " of them borrowed"));
  }
  const auto vault = std::move(vault_);  // the lease is over, whatever happens below
  const auto slot = std::move(slot_);
  const MutexLock lock(vault->mutex);
  slot->writing = false;
  vault->check_owned();
  detail::SlotHeader header;
  header.state = SlotState::kSealed;
  header.image = info;
  vault->seal(key_, *slot, header);
}

void WriteLease::abandon() noexcept {
  if (!slot_) return;
  if (!vault_->in_forked_child()) {
    const MutexLock lock(vault_->mutex);
    slot_->writing = false;
  }
  slot_.reset();
  vault_.reset();
}

ReadLease& ReadLease::operator=(ReadLease&& other) noexcept {
  if (this != &other) {
    release();
    vault_ = std::move(other.vault_);
    slot_ = std::move(other.slot_);
    key_ = other.key_;
    info_ = std::move(other.info_);
    bytes_ = other.bytes_;
  }
  return *this;
}

ReadLease::~ReadLease() { release(); }

std::span<const std::byte> ReadLease::image() const noexcept {
  return slot_ ? slot_->image().first(bytes_) : std::span<std::byte>();
}

void ReadLease::release() noexcept {
  if (!slot_) return;
  if (!vault_->in_forked_child()) {
    const MutexLock lock(vault_->mutex);
    --slot_->readers;
  }
  slot_.reset();
  vault_.reset();
}

}  // namespace meshstage
