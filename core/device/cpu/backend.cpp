#include <cstdio>
#include <cstring>
#include <new>

#include <meshstage/core/device/cpu/backend_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::device_backend {

struct Stream {};
struct Event {};

namespace {

Result no_memory(Failure* failure, std::uint64_t bytes) {
  failure->kind = static_cast<std::int32_t>(ErrorKind::kOutOfMemory);
  std::snprintf(failure->text, sizeof(failure->text), "there are no %llu bytes of host memory",
                static_cast<unsigned long long>(bytes));
  return kFailed;
}

void probe(Probe* out) {
  *out = {};
  out->devices = 1;
  std::snprintf(out->driver, sizeof(out->driver), "host memory");
}

Result describe(int, Description* out, Failure*) {
  *out = {};
  std::snprintf(out->name, sizeof(out->name), "CPU");
  return kDone;
}

Result open(int device, Failure* failure) {
  if (device == 0) return kDone;
  failure->kind = static_cast<std::int32_t>(ErrorKind::kInvalidArgument);
  std::snprintf(failure->text, sizeof(failure->text), "there is one CPU, of index 0");
  return kFailed;
}

// Any address may be the host's.
Result locate(int, const void*, Location* out, Failure*) {
  *out = {Pointee::kDevice, 0};
  return kDone;
}

constexpr std::align_val_t kAlignment{256};

Result allocate(int, std::uint64_t bytes, void** memory, Failure* failure) {
  *memory = ::operator new(bytes, kAlignment, std::nothrow);
  return *memory != nullptr ? kDone : no_memory(failure, bytes);
}
void release(int, void* memory) { ::operator delete(memory, kAlignment); }

Result pin(int, void* begin, std::uint64_t, std::uint64_t* address, Failure*) {
  *address = reinterpret_cast<std::uint64_t>(begin);
  return kDone;
}
Result unpin(int, void*, Failure*) { return kDone; }

Result open_stream(int, Stream** stream, Failure* failure) {
  *stream = new (std::nothrow) Stream;
  return *stream != nullptr ? kDone : no_memory(failure, sizeof(Stream));
}
void close_stream(Stream* stream) { delete stream; }
Result open_event(int, Event** event, Failure* failure) {
  *event = new (std::nothrow) Event;
  return *event != nullptr ? kDone : no_memory(failure, sizeof(Event));
}
void close_event(Event* event) { delete event; }

Result is_capturing(int, std::uint64_t, bool* capturing, Failure*) {
  *capturing = false;
  return kDone;
}
Result record_foreign(Event*, std::uint64_t, Failure*) { return kDone; }
Result wait_foreign(int, std::uint64_t, Event*, Failure*) { return kDone; }
Result record(Event*, Stream*, Failure*) { return kDone; }
Result wait(Stream*, Event*, Failure*) { return kDone; }
Result query(Event*, Failure*) { return kDone; }

Result copy(Stream*, const Copy* copies, std::size_t count, bool, Failure*) {
  for (std::size_t i = 0; i < count; ++i)
    std::memcpy(copies[i].target, copies[i].source, copies[i].bytes);
  return kDone;
}
bool can_gather(int) { return true; }
Result gather(Stream*, std::uint64_t items, std::uint32_t count, Failure*) {
  const auto* const all = reinterpret_cast<const GatherItem*>(items);
  for (std::uint32_t i = 0; i < count; ++i) {
    std::memcpy(reinterpret_cast<void*>(all[i].target), reinterpret_cast<void*>(all[i].source),
                all[i].bytes);
  }
  return kDone;
}

// The host's own digests are above this room.
bool can_digest(int) { return false; }
Result digest(Stream*, std::uint64_t, std::uint64_t, std::uint64_t, std::uint32_t,
              Failure* failure) {
  failure->kind = static_cast<std::int32_t>(ErrorKind::kInvalidState);
  std::snprintf(failure->text, sizeof(failure->text), "the CPU has no kernel that digests");
  return kFailed;
}

constexpr Table kTable = {kBackendAbi,    "host memory", probe,      describe,    open,
                          locate,         allocate,      release,    pin,         unpin,
                          open_stream,    close_stream,  open_event, close_event, is_capturing,
                          record_foreign, wait_foreign,  record,     wait,        query,
                          copy,           can_gather,    gather,     can_digest,  digest};

}  // namespace

}  // namespace meshstage::device_backend

namespace meshstage::detail {

const device_backend::Table& cpu_backend() { return device_backend::kTable; }

}  // namespace meshstage::detail
