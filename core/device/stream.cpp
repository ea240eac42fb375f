// Events, streams, and the page-locking that decides what a stream may do.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <optional>
#include <thread>

#include <meshstage/core/device/runtime_impl.hpp>
#include <meshstage/core/memory/resource.hpp>

namespace meshstage {
namespace {

namespace backend = device_backend;
using detail::call;

constexpr std::size_t kPage = 4096;

// Asks for the pages, so that locking them does not fault them in one by one under the driver's
// locks. A system that cannot (before Linux 5.14) leaves it to the driver.
void populate(std::span<std::byte> pages) {
#ifdef MADV_POPULATE_WRITE
  while (::madvise(pages.data(), pages.size(), MADV_POPULATE_WRITE) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    if (errno == EINVAL) return;
    throw_errno("madvise(MADV_POPULATE_WRITE)", {}, errno);
  }
#else
  static_cast<void>(pages);
#endif
}

}  // namespace

bool DeviceEvent::Impl::query() {
  const MutexLock lock(mutex);
  if (done) return true;
  pool.owner().require(pool.device());
  done = call(pool.device(), pool.table().query, event) == backend::kDone;
  return done;
}

bool DeviceEvent::done() const { return impl_ == nullptr || impl_->query(); }

bool DeviceEvent::over() const noexcept {
  try {
    return done();
  } catch (const Error&) {
    return true;
  }
}

void DeviceEvent::wait(Deadline deadline, const std::function<void()>& check) const {
  using namespace std::chrono_literals;
  constexpr int kBusy = 64;
  constexpr auto kLongest = 200us;
  auto pause = 5us;
  for (int round = 0; !done(); ++round) {
    if (check) check();
    if (deadline.expired()) throw Timeout("a device was not done by the deadline");
    if (round < kBusy) {
      std::this_thread::yield();
      continue;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min<std::chrono::microseconds>(pause * 2, kLongest);
  }
}

void detail::DevicePinner::pin(std::span<std::byte> pages) {
  owner_.require(device_);
  const auto begin = reinterpret_cast<std::uintptr_t>(pages.data());
  if (pages.empty() || begin % kPage != 0 || pages.size() % kPage != 0) {
    throw InvalidArgument("page-locking " + std::to_string(pages.size()) +
                          " bytes that are not whole pages");
  }
  std::size_t locked = 0;
  std::chrono::steady_clock::duration took{};
  try {
    while (locked < pages.size()) {
      const auto piece =
          pages.subspan(locked, std::min<std::size_t>(pages.size() - locked, kPinnedPieceBytes));
      populate(piece);
      // The driver's lock is not fair: without a rest this thread has it again before a trainer's
      // launch, which waits for it, wakes up.
      if (locked > 0) std::this_thread::sleep_for(took);
      std::uint64_t address = 0;
      const auto begin_of_call = std::chrono::steady_clock::now();
      call(device_, table_.pin, static_cast<int>(device_.index), static_cast<void*>(piece.data()),
           static_cast<std::uint64_t>(piece.size()), &address);
      took = std::chrono::steady_clock::now() - begin_of_call;
      ranges_.add(piece, address);
      locked += piece.size();
    }
  } catch (...) {
    unpin(pages.first(locked));
    throw;
  }
}

void detail::DevicePinner::unpin(std::span<std::byte> pages) noexcept {
  // A forked child shares the parent's registration and leaves it alone, and the table of pieces,
  // whose lock another thread may have held when it was forked.
  if (!owner_.here()) return;
  for (std::size_t at = 0; at < pages.size(); at += kPinnedPieceBytes) {
    const auto piece =
        pages.subspan(at, std::min<std::size_t>(pages.size() - at, kPinnedPieceBytes));
    ranges_.remove(piece);
    // A call may fail for something that was issued earlier, before it did anything. What the
    // driver no longer knows the second time is unlocked.
    backend::Failure ignored{};
    for (int tries = 0; tries < 2; ++tries) {
      if (table_.unpin(device_.index, piece.data(), &ignored) == backend::kDone) break;
    }
  }
}

struct DeviceStream::Impl {
  Impl(DeviceRuntime::Impl& the_runtime, detail::OpenDevice& the_device)
      : runtime(the_runtime), on(the_device) {
    call(on.device, on.table.open_stream, static_cast<int>(on.device.index), &stream);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (!on.owner.here()) return;
    // A kernel that has not run yet reads its items when it does.
    for (auto& list : lists) runtime.keep(std::move(list.used), std::move(list.memory));
    on.table.close_stream(stream);
  }

  // Page-locked memory with a kernel's items, used again when the kernel has run.
  struct Memory {
    Memory(MemoryPinner& pinner, std::size_t the_bytes)
        : bytes(the_bytes), begin(static_cast<std::byte*>(host_memory().allocate(bytes, kPage))) {
      try {
        pages.emplace(pinner, std::span(begin, bytes));
      } catch (...) {
        host_memory().deallocate(begin, bytes, kPage);
        throw;
      }
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
      pages.reset();
      host_memory().deallocate(begin, bytes, kPage);
    }
    std::size_t bytes;
    std::byte* begin;
    std::optional<PinnedPages> pages;
  };
  struct Items {
    std::shared_ptr<Memory> memory;
    DeviceEvent used;
  };
  Items& items_of(std::size_t bytes) {
    for (auto& list : lists) {
      if (list.memory->bytes >= bytes && list.used.done()) return list;
    }
    const auto rounded = (bytes + kPage - 1) / kPage * kPage;
    lists.push_back({std::make_shared<Memory>(on.pinner, rounded), {}});
    return lists.back();
  }

  DeviceEvent record() {
    DeviceEvent event(std::make_shared<DeviceEvent::Impl>(on.events));
    call(on.device, on.table.record, event.impl_->event, stream);
    return event;
  }

  /// Cuts copies where the host's ends are cut by pieces, and by `longest`. Calls f(target, source,
  /// bytes, address), the last of the host's end for kernels and 0 where it is pageable.
  template <class F>
  void cut(CopyDirection direction, std::span<const DeviceCopy> copies, F&& f) const {
    for (const auto& copy : copies) {
      auto* target = static_cast<std::byte*>(copy.target);
      const auto* source = static_cast<const std::byte*>(copy.source);
      if (copy.bytes == 0) continue;
      if (direction == CopyDirection::kWithinDevice) {
        f(target, source, copy.bytes, std::uint64_t{0});
        continue;
      }
      const auto* const host = direction == CopyDirection::kToHost ? target : source;
      if (const auto whole = on.ranges.in_one_piece({host, copy.bytes})) {
        f(target, source, copy.bytes, whole->address);
        continue;
      }
      for (const auto& part : on.ranges.parts({host, copy.bytes})) {
        f(target, source, part.bytes, part.address);
        target += part.bytes;
        source += part.bytes;
      }
    }
  }

  void copy(CopyDirection direction, std::span<const DeviceCopy> copies) {
    std::vector<backend::Copy> pinned, pageable;
    pinned.reserve(copies.size());
    cut(direction, copies,
        [&](std::byte* target, const std::byte* source, std::uint64_t bytes,
            std::uint64_t address) {
          const bool blocks = address == 0 && direction != CopyDirection::kWithinDevice;
          (blocks ? pageable : pinned).push_back({target, source, bytes});
        });
    // Those that do not block first.
    for (const bool blocks : {false, true}) {
      const auto& list = blocks ? pageable : pinned;
      if (list.empty()) continue;
      call(on.device, on.table.copy, stream, list.data(), list.size(), blocks);
    }
  }

  void gather(CopyDirection direction, std::span<const DeviceCopy> copies) {
    std::vector<backend::GatherItem> list;
    list.reserve(copies.size());
    bool fits = on.table.can_gather(on.device.index);
    cut(direction, copies,
        [&](std::byte* target, const std::byte* source, std::uint64_t bytes,
            std::uint64_t address) {
          auto to = reinterpret_cast<std::uint64_t>(target);
          auto from = reinterpret_cast<std::uint64_t>(source);
          if (direction == CopyDirection::kToHost) to = address;
          if (direction == CopyDirection::kToDevice) from = address;
          fits = fits && to != 0 && from != 0;
          for (std::uint64_t at = 0; at < bytes && fits; at += backend::kGatherItemBytes) {
            list.push_back({to + at, from + at, std::min(bytes - at, backend::kGatherItemBytes)});
          }
        });
    if (!fits || list.size() > UINT32_MAX) return copy(direction, copies);
    if (list.empty()) return;
    const auto bytes = list.size() * sizeof(list[0]);
    auto& items = items_of(bytes);
    std::memcpy(items.memory->begin, list.data(), bytes);
    const auto whole = on.ranges.in_one_piece({items.memory->begin, bytes});
    if (!whole) return copy(direction, copies);  // a list longer than a piece
    call(on.device, on.table.gather, stream, whole->address,
         static_cast<std::uint32_t>(list.size()));
    try {
      items.used = record();
    } catch (...) {
      // Nobody can tell any more when the kernel has read its list.
      runtime.keep_for_good(std::move(items.memory));
      std::erase_if(lists, [](const Items& one) { return one.memory == nullptr; });
      throw;
    }
  }

  DeviceRuntime::Impl& runtime;
  detail::OpenDevice& on;
  backend::Stream* stream = nullptr;
  std::deque<Items> lists;
};

DeviceStream::DeviceStream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceStream::DeviceStream() = default;
DeviceStream::DeviceStream(DeviceStream&&) noexcept = default;
DeviceStream& DeviceStream::operator=(DeviceStream&&) noexcept = default;
DeviceStream::~DeviceStream() = default;

Device DeviceStream::device() const noexcept { return impl_->on.device; }

void DeviceStream::wait(const DeviceEvent& event) {
  if (event.impl_ == nullptr) return;
  impl_->on.owner.require(impl_->on.device);
  call(impl_->on.device, impl_->on.table.wait, impl_->stream, event.impl_->event);
}

DeviceEvent DeviceStream::record() {
  impl_->on.owner.require(impl_->on.device);
  return impl_->record();
}

void DeviceStream::copy(CopyDirection direction, std::span<const DeviceCopy> copies) {
  impl_->on.owner.require(impl_->on.device);
  impl_->copy(direction, copies);
}

void DeviceStream::gather(CopyDirection direction, std::span<const DeviceCopy> copies) {
  impl_->on.owner.require(impl_->on.device);
  impl_->gather(direction, copies);
}

DeviceStream DeviceRuntime::open_stream(Device device) {
  impl_->look_after_kept();
  return DeviceStream(std::make_unique<DeviceStream::Impl>(*impl_, impl_->open(device)));
}

}  // namespace meshstage
