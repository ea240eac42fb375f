#include <meshstage/core/image/restore_copies.hpp>

#include <algorithm>
#include <exception>
#include <list>
#include <string>
#include <thread>
#include <utility>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/device/batched_copies.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/copy_parts.hpp>
#include <meshstage/core/memory/copy_threads.hpp>

namespace meshstage::detail {
namespace {

// What one device is to copy, and has issued.
struct OnDevice {
  Device device;
  std::vector<DeviceCopy> list;
  DeviceStream stream;
  BatchedCopies copies;
};

std::list<OnDevice> by_device(std::span<const RestoreCopy> copies) {
  std::list<OnDevice> devices;
  for (const auto& [to, from] : copies) {
    if (to.device().is_cpu()) continue;
    auto on = std::find_if(devices.begin(), devices.end(),
                           [&](const OnDevice& one) { return one.device == to.device(); });
    if (on == devices.end()) on = devices.insert(on, OnDevice{to.device(), {}, {}, {}});
    on->list.push_back({to.data(), from.data(), from.size()});
  }
  return devices;
}

// The copies into storages of the CPU.
void copy_by_crew(std::span<const RestoreCopy> copies, unsigned hands) {
  CopyParts parts;
  for (const auto& [to, from] : copies) {
    parts.add(to.device().is_cpu() ? to.bytes() : std::span<std::byte>());
  }
  if (!parts.is_large()) {
    hands = 1;
  } else if (hands == 0) {
    hands = default_copy_threads(available_processors(), Beside::kNothing);
  }
  Crew crew("ms-restore", hands);
  parts.run(&crew, 0, [&](const CopyParts::Piece& piece) {
    const auto& [to, from] = copies[piece.range];
    fast_copy(piece.of(to.bytes()), piece.of(from), piece.hint);
  });
}

// What was issued still happens: both ends stay until then. `ends` may be null where `wait`.
void let_go(OnDevice& on, const std::shared_ptr<const void>& ends, bool wait) {
  if (!on.stream.valid()) return;
  auto& runtime = DeviceRuntime::of(on.device.type);
  try {
    const auto behind = on.stream.record();
    while (wait && !behind.over()) std::this_thread::yield();
    runtime.keep(behind, ends);
  } catch (const std::exception&) {  // the device failed, or there is no memory for an event
    runtime.keep_for_good(ends);     // nobody can tell when
  }
}

[[noreturn]] void throw_unusable(const Error& e) {
  const auto text = std::string(e.what()) +
                    "; the tensors are unusable until they are restored again: some were written, "
                    "others not";
  if (e.kind() == ErrorKind::kTimeout) throw Timeout(text);
  throw InvalidState(text);
}

}  // namespace

void restore_copies(std::span<const RestoreCopy> copies, std::span<const DeviceReady> ready,
                    const RestoreOptions& options) {
  const auto copy_on_host = [&] { copy_by_crew(copies, options.copy_threads); };
  auto devices = by_device(copies);
  if (devices.empty()) return copy_on_host();
  const auto ends =
      std::make_shared<std::pair<std::vector<Storage>, std::shared_ptr<const void>>>();
  for (const auto& copy : copies) ends->first.push_back(copy.to);
  ends->second = options.keep;
  try {
    for (auto& on : devices) {
      on.stream = DeviceRuntime::of(on.device.type).open_stream(on.device);
      for (const auto& before : ready) {
        if (before.device == on.device) on.stream.wait(before.event);
      }
      on.copies = BatchedCopies(on.stream, CopyDirection::kToDevice, on.list);
    }
    copy_on_host();
    for (const auto& on : devices) on.copies.last().wait(options.deadline);
  } catch (const std::exception& error) {
    for (auto& on : devices) let_go(on, ends, options.keep == nullptr);
    const auto* const known = dynamic_cast<const Error*>(&error);
    if (known == nullptr) throw;
    throw_unusable(*known);
  }
}

}  // namespace meshstage::detail
