#include <new>
#include <thread>

#include <meshstage/core/device/cpu/backend_impl.hpp>
#include <meshstage/core/device/cuda/module_impl.hpp>
#include <meshstage/core/device/runtime_impl.hpp>

namespace meshstage {
namespace {

namespace backend = device_backend;

const backend::Table& table_of(DeviceType type) {
  return type == DeviceType::kCpu ? detail::cpu_backend() : detail::cuda_backend();
}

}  // namespace

std::string_view to_string(DeviceProblem problem) noexcept {
  switch (problem) {
    case DeviceProblem::kNone:
      return "none";
    case DeviceProblem::kNoModule:
      return "no module";
    case DeviceProblem::kNoDriver:
      return "no driver";
    case DeviceProblem::kDriverTooOld:
      return "driver too old";
    case DeviceProblem::kNoDevice:
      return "no device";
    case DeviceProblem::kNoPermission:
      return "no permission";
    case DeviceProblem::kNotReady:
      return "system not ready";
    case DeviceProblem::kFailed:
      return "failed";
  }
  return "unknown";
}

DeviceSupport device_support(DeviceType type) {
  DeviceSupport support;
  const backend::Table* table = nullptr;
  try {
    table = &table_of(type);
  } catch (const Error& e) {
    support.problem = DeviceProblem::kNoModule;
    support.detail = e.what();
    return support;
  }
  support.module = table->version;
  backend::Probe probe{};
  table->probe(&probe);
  support.problem = static_cast<DeviceProblem>(probe.problem);
  support.driver = probe.driver;
  support.detail = probe.detail;
  support.kernels = probe.kernels;
  if (support.problem != DeviceProblem::kNone) return support;
  for (int i = 0; i < probe.devices; ++i) {
    backend::Description found{};
    backend::Failure failure{};
    if (table->describe(i, &found, &failure) != backend::kDone) {
      support.problem = DeviceProblem::kFailed;
      support.detail = failure.text;
      return support;
    }
    support.devices.push_back({{type, static_cast<std::int16_t>(i)},
                               found.name,
                               found.memory_bytes,
                               std::to_string(found.major) + "." + std::to_string(found.minor)});
  }
  return support;
}

DeviceRuntime::DeviceRuntime(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceRuntime::~DeviceRuntime() = default;

DeviceRuntime& DeviceRuntime::of(DeviceType type) {
  // Never destroyed: memory and streams of other static objects may end after any order there is.
  static const auto make = [](DeviceType kind) {
    const auto& table = table_of(kind);
    backend::Probe probe{};
    table.probe(&probe);
    if (static_cast<DeviceProblem>(probe.problem) != DeviceProblem::kNone) {
      throw InvalidState("devices of kind " + to_string(Device{kind, 0}) + " cannot be used, " +
                         std::string(to_string(static_cast<DeviceProblem>(probe.problem))) + ": " +
                         probe.detail);
    }
    return new DeviceRuntime(std::make_unique<Impl>(kind, table));
  };
  if (type == DeviceType::kCpu) {
    static DeviceRuntime* const cpu = make(DeviceType::kCpu);
    return *cpu;
  }
  static DeviceRuntime* const cuda = make(DeviceType::kCuda);  // tried again if it throws
  return *cuda;
}

detail::OpenDevice& DeviceRuntime::Impl::open(Device device) {
  owner.require(device);
  if (device.type != type)
    throw InvalidArgument(to_string(device) + " is no device of this runtime's kind");
  const MutexLock lock(mutex);
  if (const auto it = devices.find(device.index); it != devices.end()) return it->second;
  detail::call(device, table.open, static_cast<int>(device.index));
  return devices.try_emplace(device.index, table, device, owner, ranges).first->second;
}

DeviceType DeviceRuntime::type() const noexcept { return impl_->type; }

void DeviceRuntime::require_memory(Device device, const void* address, std::uint64_t bytes) {
  auto& on = impl_->open(device);
  if (bytes == 0) return;
  // Its ends: a tensor may lie in several allocations that are mapped one after the other.
  for (const auto offset : {std::uint64_t{0}, bytes - 1}) {
    backend::Location found{};
    detail::call(device, on.table.locate, static_cast<int>(device.index),
                 static_cast<const void*>(static_cast<const std::byte*>(address) + offset), &found);
    if (found.pointee == backend::Pointee::kDevice && found.device == device.index) continue;
    std::string what;
    switch (found.pointee) {
      case backend::Pointee::kDevice:
        what =
            "memory of " + to_string(Device{device.type, static_cast<std::int16_t>(found.device)});
        break;
      case backend::Pointee::kPinned:
        what = "page-locked host memory";
        break;
      case backend::Pointee::kManaged:
        what = "managed memory, which moves between host and device";
        break;
      case backend::Pointee::kUnknown:
        what = "nothing that the driver knows (host memory, or freed)";
        break;
    }
    throw InvalidArgument("is said to be on " + to_string(device) + ", but byte " +
                          std::to_string(offset) + " of " + std::to_string(bytes) + " is " + what);
  }
}

bool DeviceRuntime::has_kernels(Device device) {
  return impl_->open(device).table.can_gather(device.index);
}

bool DeviceRuntime::can_digest(Device device) {
  return impl_->open(device).table.can_digest(device.index);
}

std::shared_ptr<std::byte> DeviceRuntime::allocate(Device device, std::uint64_t bytes) {
  return detail::allocate(impl_->open(device), bytes);
}

std::shared_ptr<std::byte> detail::allocate(OpenDevice& on, std::uint64_t bytes) {
  if (bytes == 0) return nullptr;
  void* memory = nullptr;
  call(on.device, on.table.allocate, static_cast<int>(on.device.index), bytes, &memory);
  return {static_cast<std::byte*>(memory), [&on](std::byte* p) {
            if (on.owner.here()) on.table.release(on.device.index, p);
          }};
}

void DeviceRuntime::require_not_capturing(const TrainerStream& stream) {
  auto& on = impl_->open(stream.device);
  bool capturing = false;
  detail::call(stream.device, on.table.is_capturing, static_cast<int>(stream.device.index),
               stream.stream.value, &capturing);
  if (!capturing) return;
  throw InvalidState("stream " + std::to_string(stream.stream.value) + " of " +
                     to_string(stream.device) +
                     " is being captured into a graph; stage before or after the capture");
}

DeviceEvent DeviceRuntime::record(const TrainerStream& stream) {
  auto& on = impl_->open(stream.device);
  DeviceEvent event(std::make_shared<DeviceEvent::Impl>(on.events));
  detail::call(stream.device, on.table.record_foreign, event.impl_->event, stream.stream.value);
  return event;
}

void DeviceRuntime::hold(const TrainerStream& stream, const DeviceEvent& event) {
  auto& on = impl_->open(stream.device);
  if (event.impl_ == nullptr) return;
  detail::call(stream.device, on.table.wait_foreign, static_cast<int>(stream.device.index),
               stream.stream.value, event.impl_->event);
}

MemoryPinner& DeviceRuntime::pinner(Device device) { return impl_->open(device).pinner; }

bool DeviceRuntime::is_pinned(std::span<const std::byte> bytes) const {
  return impl_->ranges.contains(bytes);
}

std::size_t DeviceRuntime::Impl::look_after_kept() {
  std::vector<std::shared_ptr<const void>> over;  // destroyed outside the lock
  const MutexLock lock(kept_mutex);
  std::erase_if(kept, [&](auto& entry) {
    if (!entry.first.over()) return false;
    over.push_back(std::move(entry.second));
    return true;
  });
  return kept.size();
}

void DeviceRuntime::Impl::keep(DeviceEvent event, std::shared_ptr<const void> what) noexcept {
  try {
    look_after_kept();
    const MutexLock lock(kept_mutex);
    kept.emplace_back(event, what);
  } catch (const std::bad_alloc&) {  // then the memory's user waits, and `what` can go with it
    while (!event.over()) std::this_thread::yield();
  }
}

void DeviceRuntime::Impl::keep_for_good(std::shared_ptr<const void> what) noexcept {
  using Kept = std::shared_ptr<const void>;
  try {
    const MutexLock lock(kept_mutex);
    kept_for_good.push_back(what);
  } catch (const std::bad_alloc&) {  // a handle that is never destroyed
    alignas(Kept) std::byte handle[sizeof(Kept)];
    new (handle) Kept(std::move(what));
  }
}

void DeviceRuntime::keep(DeviceEvent event, std::shared_ptr<const void> what) noexcept {
  impl_->keep(std::move(event), std::move(what));
}

void DeviceRuntime::keep_for_good(std::shared_ptr<const void> what) noexcept {
  impl_->keep_for_good(std::move(what));
}

std::size_t DeviceRuntime::kept() { return impl_->look_after_kept(); }

}  // namespace meshstage
