#include <meshstage/core/replicate/slots.hpp>

#include <algorithm>
#include <memory>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {

std::optional<SlotKey> sealed_slot(int owner, const protocol::SlotPair& pair, ImageId id) {
  for (int index = 0; index < 2; ++index) {
    const auto& slot = pair[static_cast<std::size_t>(index)];
    if (slot.state == protocol::Slot::State::kSealed && slot.id == id) return SlotKey{owner, index};
  }
  return std::nullopt;
}

Slots::Slots(Engine& engine) : engine_(engine), worker_("ms-slots", engine.boundary()) {}

bool Slots::drop_if_unused(SlotKey key) noexcept {
  const auto it = users_.find(key);
  if (it->second.others + it->second.disk > 0) return false;
  users_.erase(it);
  return true;
}

void Slots::release(SlotKey key) {
  --users_[key].others;
  if (drop_if_unused(key)) retry();
}

void Slots::release(std::span<const SlotKey> keys) {
  for (const SlotKey key : keys) release(key);
}

void Slots::hold_replica(int ward, Promise<std::vector<SlotKey>> held) {
  // If the generation has broken since the call began, throw its loss.
  if (const auto loss = engine_.gate.loss()) {
    held.set_error(loss->error());
    return;
  }
  const protocol::State& state = engine_.state;
  const auto& wards = engine_.config->wards;
  const auto index = std::lower_bound(wards.begin(), wards.end(), ward) - wards.begin();
  std::vector<SlotKey> keys;
  if (state.base.exists()) {
    const auto& pair = state.held[static_cast<std::size_t>(index)];
    const auto replica = sealed_slot(ward, pair, state.base);
    const auto own = sealed_slot(engine_.rank, state.own, state.base);
    if (replica) keys.push_back(*replica);
    if (replica && own) keys.push_back(*own);
  }
  if (keys.empty()) {
    held.set_error(std::make_exception_ptr(
        NotFound("no complete step of rank " + std::to_string(ward) + " is held yet")));
    return;
  }
  for (const SlotKey key : keys) hold(key);
  held.set_value(std::move(keys));
}

void Slots::hold_for_disk(std::span<const SlotKey> keys) {
  Users now;
  now.disk_since = Deadline::Clock::now();
  std::map<SlotKey, Users> fresh;
  for (const SlotKey key : keys) fresh.emplace(key, now);
  engine_.loop.post_at(patience_with(now), [this] { retry(); });
  users_.merge(fresh);  // from here on nothing throws
  for (const SlotKey key : keys) {
    Users& users = users_.find(key)->second;
    if (users.disk++ == 0) users.disk_since = now.disk_since;
  }
}

void Slots::release_from_disk(std::span<const SlotKey> keys) {
  bool any = false;
  for (const SlotKey key : keys) {
    --users_.find(key)->second.disk;
    if (drop_if_unused(key)) any = true;
  }
  if (any) retry();
}

Deadline Slots::patience_with(const Users& users) const {
  return Deadline::at(users.disk_since).plus(engine_.options.deadline / 2);
}

std::optional<std::string> Slots::stuck(SlotKey key) const {
  const auto it = users_.find(key);
  if (it == users_.end() || it->second.disk == 0 || !patience_with(it->second).expired()) {
    return std::nullopt;
  }
  const auto since = Deadline::Clock::now() - it->second.disk_since;
  return "its slot has been written to disk for " +
         std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(since).count()) +
         " ms; until " + engine_.options.directory.string() + " answers, steps fail";
}

void Slots::when_free(std::function<bool()> attempt) {
  if (!attempt()) waiting_.push_back(std::move(attempt));
}

void Slots::retry() {
  for (auto& attempt : std::exchange(waiting_, {})) when_free(std::move(attempt));
}

void Slots::leave() {
  waiting_.clear();
  held_.clear();
  for (auto& [key, users] : users_) users.others = 0;
  std::erase_if(users_, [](const auto& entry) { return entry.second.disk == 0; });
}

void Slots::begin_write(WantedImage wanted, Then then) {
  auto ticket = engine_.scope.enter();
  if (!ticket) return;
  held_.erase(wanted.slot);
  hold(wanted.slot);
  worker_.post([this, image = std::move(wanted), tell = std::move(then), ticket] {
    const BegunImage begun = begin_image(engine_, image);
    engine_.to_loop(ticket, [this, key = image.slot, tell, begun] { began(key, begun, tell); });
  });
}

void Slots::began(SlotKey key, const BegunImage& begun, const Then& then) {
  if (begun.fenced) engine_.lose_vault(*begun.fenced);
  then(*begun.lease, begun.error);
  give_back(std::move(*begun.lease));
  release(key);
}

transfer::HeldBlocks Slots::take_held(SlotKey key) {
  const auto it = held_.find(key);
  if (it == held_.end()) return {};
  auto held = std::move(it->second);
  held_.erase(it);
  return held;
}

void Slots::remember_held(SlotKey key, transfer::HeldBlocks held) {
  held_.insert_or_assign(key, std::move(held));
}

void Slots::give_back(WriteLease lease) {
  if (!lease.valid()) return;
  worker_.post([held = std::make_shared<WriteLease>(std::move(lease))] { held->abandon(); });
}

}  // namespace meshstage::replicate
