#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/stage/device_snapshot.hpp>

namespace meshstage::detail {
namespace {

constexpr std::uint64_t kAlignment = 256;
// A copy's target has the source's remainder by this, so that a kernel copies as widely as it can.
constexpr std::uintptr_t kWidest = 16;

bool is_on_device(const Storage& storage) {
  return !storage.device().is_cpu() && storage.nbytes() > 0;
}

std::uint64_t room_for(const Storage& storage) {
  return (storage.nbytes() + kWidest + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

/// Whether a snapshot is in use. Threads: any.
struct DeviceSnapshot::InUse {
  Mutex mutex;
  CondVar changed;
  bool used MESHSTAGE_GUARDED_BY(mutex) = false;
};

/// Keeps the memory, and its next snapshot away, while a storage on it or a device's copy is left.
class DeviceSnapshot::Use {
 public:
  Use(std::shared_ptr<InUse> in_use, std::map<std::int16_t, Memory> memory)
      : in_use_(std::move(in_use)), memory_(std::move(memory)) {
    const MutexLock lock(in_use_->mutex);
    in_use_->used = true;
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  ~Use() {
    memory_.clear();  // first: growing frees what is not used
    const MutexLock lock(in_use_->mutex);
    in_use_->used = false;
    in_use_->changed.notify_all();
  }

 private:
  std::shared_ptr<InUse> in_use_;
  std::map<std::int16_t, Memory> memory_;
};

DeviceSnapshot::DeviceSnapshot(std::uint64_t max_bytes,
                               std::function<void(const std::string&)> warn)
    : max_bytes_(max_bytes), warn_(std::move(warn)), in_use_(std::make_shared<InUse>()) {}

std::uint64_t DeviceSnapshot::bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& [index, memory] : memory_) sum += memory.bytes;
  return sum;
}

void DeviceSnapshot::wait_until_free(Deadline deadline) {
  constexpr std::chrono::milliseconds kLook{1};
  while (true) {
    // A runtime lets go of what a device has finished when it is asked.
    for (const auto& [index, memory] : memory_) (void)DeviceRuntime::of(memory.type).kept();
    {
      MutexLock lock(in_use_->mutex);
      const auto is_free = [this]() MESHSTAGE_REQUIRES(in_use_->mutex) { return !in_use_->used; };
      if (in_use_->changed.wait_until(lock, Deadline::after(kLook), is_free)) return;
    }
    if (deadline.expired())
      throw Timeout("the snapshot before was not copied to the host by the deadline");
  }
}

void DeviceSnapshot::grow(const Sizes& sizes) {
  for (const auto& [index, size] : sizes) {
    auto& memory = memory_[index];
    const auto& [type, bytes] = size;
    if (memory.bytes >= bytes) continue;
    if (max_bytes_ != 0 && bytes > max_bytes_) {
      throw OutOfMemory(to_string(Device{type, index}) + ": a snapshot takes " +
                        std::to_string(bytes) + " bytes, and may have " +
                        std::to_string(max_bytes_));
    }
    memory = {};  // first, so that the device has room; what another snapshot left is let go, too
    (void)DeviceRuntime::of(type).kept();
    memory = {type, DeviceRuntime::of(type).allocate({type, index}, bytes), bytes};
  }
}

bool DeviceSnapshot::reserve(std::span<const Storage> storages, Deadline deadline) {
  Sizes sizes;
  for (const auto& storage : storages) {
    if (!is_on_device(storage)) continue;
    auto& size = sizes[storage.device().index];
    size = {storage.device().type, size.second + room_for(storage)};
  }
  const auto there = [this](const auto& entry) {
    const auto found = memory_.find(entry.first);
    return found != memory_.end() && found->second.bytes >= entry.second.second;
  };
  if (std::all_of(sizes.begin(), sizes.end(), there)) return !sizes.empty();
  if (sizes == refused_sizes_) return false;
  wait_until_free(deadline);
  try {
    grow(sizes);
    return true;
  } catch (const OutOfMemory& e) {
    memory_.clear();
    refused_sizes_ = std::move(sizes);
    if (refused_++ == 0 && warn_)
      warn_(std::string("there is no memory for a snapshot, so the trainer waits longer: ") +
            e.what());
    return false;
  }
}

bool DeviceSnapshot::take(StagingSource& source, Deadline deadline) {
  if (!reserve(source.storages, deadline)) return false;
  wait_until_free(deadline);
  const auto use = std::make_shared<const Use>(in_use_, memory_);
  auto copies = source.storages;
  std::vector<DevicePlace> places;
  std::map<std::int16_t, std::uint64_t> taken;
  for (std::size_t i = 0; i < copies.size(); ++i) {
    const auto& from = source.storages[i];
    if (!is_on_device(from)) continue;
    const auto index = from.device().index;
    auto& at = taken[index];
    auto* const to =
        memory_[index].begin.get() + at + reinterpret_cast<std::uintptr_t>(from.data()) % kWidest;
    at += room_for(from);
    places.push_back({&from, {to, from.nbytes()}});
    copies[i] = Storage::wrap(to, from.nbytes(), use, {.external = true}, from.device());
  }
  const auto ends = std::make_shared<const std::pair<std::vector<Storage>, std::vector<Storage>>>(
      source.storages, copies);
  const DeviceCopies within(places, source.ready, streams_, ends, CopyDirection::kWithinDevice);
  std::vector<DeviceReady> ready;
  for (const auto& before : source.ready)
    ready.push_back({before.device, within.staged(before.device)});
  source.storages = std::move(copies);
  source.ready = std::move(ready);
  return true;
}

}  // namespace meshstage::detail
