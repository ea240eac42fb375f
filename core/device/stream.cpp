// Events, streams, and the page-locking that decides what a stream may do.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <thread>

#include <meshstage/core/device/kernel_list_impl.hpp>
#include <meshstage/core/device/runtime_impl.hpp>
#include <meshstage/core/device/xxh3.hpp>

namespace meshstage {
namespace {

namespace backend = device_backend;
using detail::call;

constexpr std::size_t kPage = 4096;
static_assert(kDigestAlignment == backend::kDigestAlignment);
static_assert(kLeastDigestedBytes == detail::xxh3::kLeastBytes);
static_assert(sizeof(DeviceDigest) == sizeof(backend::DigestResult));

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

// Throws InvalidArgument unless blocks and runs are as DeviceBlock and DeviceRun say.
void check_blocks(std::span<const DeviceBlock> blocks, std::span<const DeviceRun> runs) {
  const auto refuse = [](std::size_t block, const std::string& what) {
    throw InvalidArgument("block " + std::to_string(block) + " to digest: " + what);
  };
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto& block = blocks[i];
    if (block.bytes < kLeastDigestedBytes)
      refuse(i, "it has " + std::to_string(block.bytes) + " bytes");
    if (block.runs > runs.size()) refuse(i, "there are too few runs");
    std::uint64_t end = 0;
    for (const auto& run : runs.first(block.runs)) {
      const auto address = reinterpret_cast<std::uintptr_t>(run.source);
      if (run.offset % kDigestAlignment != 0 || address % kDigestAlignment != 0)
        refuse(i, "a run is not aligned");
      if (run.bytes == 0 || run.offset < end || run.offset > block.bytes ||
          run.bytes > block.bytes - run.offset) {
        refuse(i, "a run is empty, overlaps the one before it, or ends beyond the block");
      }
      end = run.offset + run.bytes;
    }
    runs = runs.subspan(block.runs);
  }
  if (!runs.empty()) refuse(blocks.size(), "there are more runs than the blocks have");
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

  // Used again when the kernel has run and nobody reads its results any more.
  struct List {
    std::shared_ptr<detail::KernelList> memory;
    DeviceEvent used;
  };
  List& list_of(std::size_t host_bytes, std::size_t device_bytes) {
    for (auto& list : lists) {
      if (list.memory->has_room(host_bytes, device_bytes) && !list.memory->is_lent() &&
          list.used.done()) {
        return list;
      }
    }
    lists.push_back({std::make_shared<detail::KernelList>(on, host_bytes, device_bytes), {}});
    return lists.back();
  }
  // Behind everything that uses the list.
  void record_use(List& list) {
    try {
      list.used = record();
    } catch (...) {
      // Nobody can tell any more when the kernel has read its list.
      runtime.keep_for_good(std::move(list.memory));
      std::erase_if(lists, [](const List& one) { return one.memory == nullptr; });
      throw;
    }
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
    auto& items = list_of(bytes, 0);
    std::memcpy(items.memory->host().data(), list.data(), bytes);
    const auto whole = on.ranges.in_one_piece(items.memory->host().first(bytes));
    if (!whole) return copy(direction, copies);  // a list longer than a piece
    call(on.device, on.table.gather, stream, whole->address,
         static_cast<std::uint32_t>(list.size()));
    record_use(items);
  }

  DeviceDigests digest(std::span<const DeviceBlock> blocks, std::span<const DeviceRun> runs) {
    if (!on.table.can_digest(on.device.index))
      throw InvalidState(to_string(on.device) + " has no kernel that digests");
    check_blocks(blocks, runs);
    if (blocks.empty()) return {};
    // Results, then what the kernel reads, which it has in its device's memory.
    const auto result_bytes = blocks.size() * sizeof(backend::DigestResult);
    const auto block_bytes = blocks.size() * sizeof(backend::DigestBlock);
    const auto read_bytes = block_bytes + runs.size() * sizeof(backend::DigestRun);
    auto& list = list_of(result_bytes + read_bytes, read_bytes);
    auto* const results = list.memory->host().data();
    auto* at = results + result_bytes;
    const auto put = [&at](const auto& one) {
      std::memcpy(at, &one, sizeof(one));
      at += sizeof(one);
    };
    std::uint64_t first_run = 0;
    for (const auto& block : blocks) {
      put(backend::DigestBlock{block.bytes, first_run, block.runs});
      first_run += block.runs;
    }
    for (const auto& run : runs) {
      put(backend::DigestRun{run.offset, reinterpret_cast<std::uint64_t>(run.source), run.bytes});
    }
    DeviceDigests made;
    list.memory->lend();
    made.all = {reinterpret_cast<const DeviceDigest*>(results),
                [memory = list.memory](const DeviceDigest*) { memory->release(); }};
    try {
      auto* const device = list.memory->device();
      const DeviceCopy there{device, results + result_bytes, read_bytes};
      copy(CopyDirection::kToDevice, {&there, 1});
      auto from = reinterpret_cast<std::uint64_t>(device);
      for (const auto& part : on.ranges.parts({results, result_bytes})) {
        const auto count = part.bytes / sizeof(backend::DigestResult);
        call(on.device, on.table.digest, stream, from,
             reinterpret_cast<std::uint64_t>(device + block_bytes), part.address,
             static_cast<std::uint32_t>(count));
        from += count * sizeof(backend::DigestBlock);
      }
    } catch (...) {
      try {
        record_use(list);
      } catch (const Error&) {  // NOLINT(bugprone-empty-catch): the first error is thrown
      }
      throw;
    }
    record_use(list);
    made.made = list.used;
    return made;
  }

  DeviceRuntime::Impl& runtime;
  detail::OpenDevice& on;
  backend::Stream* stream = nullptr;
  std::deque<List> lists;
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

DeviceDigests DeviceStream::digest(std::span<const DeviceBlock> blocks,
                                   std::span<const DeviceRun> runs) {
  impl_->on.owner.require(impl_->on.device);
  return impl_->digest(blocks, runs);
}

DeviceStream DeviceRuntime::open_stream(Device device) {
  impl_->look_after_kept();
  return DeviceStream(std::make_unique<DeviceStream::Impl>(*impl_, impl_->open(device)));
}

}  // namespace meshstage
