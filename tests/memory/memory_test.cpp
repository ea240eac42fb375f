#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/copy_threads.hpp>
#include <meshstage/core/memory/fast_copy.hpp>
#include <meshstage/core/memory/first_touch.hpp>
#include <meshstage/core/memory/mapping.hpp>
#include <meshstage/core/memory/resource.hpp>
#include <meshstage/core/memory/shared_memory.hpp>
#include <meshstage/core/os/memory_file_system.hpp>

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"

using meshstage::CopyHint;
using meshstage::MapAccess;
using meshstage::Mapping;
using meshstage::OpenMode;
using meshstage::OutOfMemory;

namespace {

std::vector<std::byte> pattern(std::size_t n) {
  std::vector<std::byte> out(n);
  std::uint32_t x = 1;
  for (auto& b : out) {
    x = x * 1664525U + 1013904223U;
    b = static_cast<std::byte>(x >> 24U);
  }
  return out;
}

/// The VmFlags of the mapping that contains `p`, from /proc/self/smaps.
std::string vm_flags(const void* p) {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(smaps, line)) {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      const auto at = reinterpret_cast<std::uintptr_t>(p);
      inside = begin <= at && at < end;
    } else if (inside && line.rfind("VmFlags:", 0) == 0) {
      return line + " ";
    }
  }
  return "";
}

/// One suite for every memory resource.
void check_resource(meshstage::MemoryResource& memory) {
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{100000},
        meshstage::kHugePageBytes - 1, meshstage::kHugePageBytes, meshstage::kHugePageBytes + 1,
        3 * meshstage::kHugePageBytes + 4096}) {
    for (const std::size_t alignment :
         {std::size_t{1}, std::size_t{64}, std::size_t{4096}, 2 * meshstage::kHugePageBytes}) {
      auto* const a = static_cast<std::byte*>(memory.allocate(bytes, alignment));
      auto* const b = static_cast<std::byte*>(memory.allocate(bytes, alignment));
      CHECK(a != nullptr);
      CHECK((bytes == 0 || a != b));
      CHECK(reinterpret_cast<std::uintptr_t>(a) % std::max(alignment, meshstage::kHostAlignment) ==
            0);
      if (bytes != 0) {
        std::fill_n(a, bytes, std::byte{1});
        std::fill_n(b, bytes, std::byte{2});
        CHECK(a[0] == std::byte{1});
        CHECK(a[bytes - 1] == std::byte{1});
      }
      memory.deallocate(a, bytes, alignment);
      memory.deallocate(b, bytes, alignment);
    }
  }
  CHECK_THROWS_AS(memory.allocate(std::size_t{1} << 62U, 64), OutOfMemory);
  CHECK_THROWS_AS(memory.allocate(~std::size_t{0}, 64), OutOfMemory);
}

}  // namespace

TEST_CASE("copies are exact at every size and alignment, and touch nothing around") {
  constexpr std::size_t kMargin = 96;
  const auto source = pattern(3000);
  for (const CopyHint hint : {CopyHint::kCached, CopyHint::kStreaming, CopyHint::kAuto}) {
    for (std::size_t n = 0; n < 600; n += n < 200 ? 1 : 37) {
      for (const std::size_t shift : {0U, 1U, 31U, 32U, 63U}) {
        std::vector<std::byte> target(n + 2 * kMargin, std::byte{0xaa});
        const auto to = std::span(target).subspan(shift, n + 1);
        meshstage::fast_copy(to, std::span(source).subspan(shift % 7, n), hint);
        const bool same = std::equal(to.begin(), to.begin() + static_cast<std::ptrdiff_t>(n),
                                     source.begin() + static_cast<std::ptrdiff_t>(shift % 7));
        const auto is_margin = [](std::byte b) { return b == std::byte{0xaa}; };
        const bool clean =
            std::all_of(target.begin(), target.begin() + static_cast<std::ptrdiff_t>(shift),
                        is_margin) &&
            std::all_of(target.begin() + static_cast<std::ptrdiff_t>(shift + n), target.end(),
                        is_margin);
        if (!same || !clean) {
          INFO("n " << n << " shift " << shift);
          REQUIRE(same);
          REQUIRE(clean);
        }
      }
    }
  }
  const auto large = pattern(meshstage::kStreamingCrossover + 77);
  std::vector<std::byte> target(large.size());
  meshstage::fast_copy(target, large);
  REQUIRE(target == large);
}

TEST_CASE("host memory is aligned, writable and refuses what cannot be") {
  check_resource(meshstage::host_memory());
}

TEST_CASE("big host blocks ask for huge pages") {
  auto& memory = meshstage::host_memory();
  void* const p = memory.allocate(2 * meshstage::kHugePageBytes, 64);
  REQUIRE(reinterpret_cast<std::uintptr_t>(p) % meshstage::kHugePageBytes == 0);
  const std::string flags = vm_flags(p);
  const bool kernel_has_them = std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled").good();
  CHECK((!kernel_has_them || flags.find(" hg ") != std::string::npos));
  memory.deallocate(p, 2 * meshstage::kHugePageBytes, 64);
}

TEST_CASE("decorated host memory passes the same suite, and the counts return to zero") {
  meshstage::CountingMemory counter(meshstage::host_memory());
  meshstage::CappedMemory capped(counter, std::size_t{1} << 30U, "the test");
  check_resource(capped);
  REQUIRE(capped.in_use() == 0);
  REQUIRE(counter.counts().bytes == 0);
  REQUIRE(counter.counts().blocks == 0);
  REQUIRE(counter.counts().allocations > 0);
}

TEST_CASE("a cap refuses before anything is allocated and says what is left") {
  meshstage::CountingMemory counter(meshstage::host_memory());
  meshstage::CappedMemory capped(counter, 1000, "staging");
  void* const p = capped.allocate(600, 64);
  try {
    (void)capped.allocate(401, 64);
    FAIL("allocated");
  } catch (const OutOfMemory& e) {
    REQUIRE(std::string(e.what()) ==
            "out of memory: the host memory budget of staging: 401 bytes needed, 400 available of "
            "the cap of "
            "1000; raise the cap or stage a smaller state");
  }
  REQUIRE(counter.counts().allocations == 1);
  void* const q = capped.allocate(400, 64);
  REQUIRE(counter.counts().peak_bytes == 1000);
  capped.deallocate(p, 600, 64);
  REQUIRE(capped.in_use() == 400);
  capped.deallocate(q, 400, 64);
  REQUIRE(counter.counts().peak_bytes == 1000);
}

TEST_CASE("a failed upstream allocation gives the budget back") {
  meshstage::CappedMemory inner(meshstage::host_memory(), 10, "inner");
  meshstage::CappedMemory outer(inner, 1000, "outer");
  REQUIRE_THROWS_AS(outer.allocate(11, 64), OutOfMemory);
  REQUIRE(outer.in_use() == 0);
}

TEST_CASE("a mapping stays out of forked children and of core dumps") {
  const TempDirectory directory;
  auto file =
      meshstage::real_file_system().open(directory.path() / "slot", OpenMode::kCreateExclusive);
  file->reserve(8192);
  Mapping mapping(*file, 8192, MapAccess::kReadWrite);
  file.reset();
  const auto bytes = mapping.bytes();
  bytes[0] = std::byte{1};
  const std::string flags = vm_flags(bytes.data());
  REQUIRE(flags.find(" dc ") != std::string::npos);  // do not copy on fork
  REQUIRE(flags.find(" dd ") != std::string::npos);  // do not dump

  Mapping moved = std::move(mapping);
  REQUIRE_FALSE(mapping.valid());  // NOLINT(bugprone-use-after-move)
  REQUIRE(mapping.bytes().empty());
  REQUIRE(moved.bytes().data() == bytes.data());
  moved = Mapping();
  REQUIRE(vm_flags(bytes.data()).empty());
}

TEST_CASE("a mapping for readers may be left to forked children") {
  const TempDirectory directory;
  const auto file =
      meshstage::real_file_system().open(directory.path() / "a", OpenMode::kCreateExclusive);
  file->reserve(4096);
  const Mapping mapping(*file, 4096, MapAccess::kRead, true);
  const std::string flags = vm_flags(mapping.bytes().data());
  REQUIRE(flags.find(" dc ") == std::string::npos);
  REQUIRE(flags.find(" dd ") != std::string::npos);
}

namespace {

// Pages that a store to each 4 KiB of `memory` makes the kernel look for. (Not instrumented: a
// sanitizer would look at its own pages beside each store, and those would be counted.)
__attribute__((no_sanitize("address", "thread"))) long faults_of_stores(
    std::span<std::byte> memory) {
  const auto faults = [] {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt + usage.ru_majflt;
  };
  const auto before = faults();
  for (std::size_t at = 0; at < memory.size(); at += 4096) {
    auto* const byte = memory.data() + at;
    *const_cast<volatile std::byte*>(byte) = std::byte(*byte | std::byte{1});
  }
  return faults() - before;
}

}  // namespace

TEST_CASE("memory that was touched first has its pages, and its bytes as they were") {
  constexpr std::size_t kBytes = std::size_t{40} << 20U;
  const TempDirectory directory("/dev/shm");
  const auto file =
      meshstage::real_file_system().open(directory.path() / "a", OpenMode::kCreateExclusive);
  file->reserve(kBytes);
  const std::byte mark[] = {std::byte{42}};
  meshstage::write_fully(*file, mark, kBytes - 1);
  const Mapping fresh(*file, kBytes, MapAccess::kReadWrite);
  REQUIRE(faults_of_stores(fresh.bytes()) > 100);  // what it is for
  for (const unsigned hands : {0U, 1U, 3U}) {
    const Mapping mapping(*file, kBytes, MapAccess::kReadWrite);
    meshstage::first_touch(mapping.bytes(), hands);
    REQUIRE(faults_of_stores(mapping.bytes()) < 16);
    REQUIRE(mapping.bytes().back() == std::byte{42});
  }
  meshstage::SharedMemory shared;
  const std::span block(static_cast<std::byte*>(shared.allocate(kBytes, 4096)), kBytes);
  REQUIRE(faults_of_stores(block) < 16);
  shared.deallocate(block.data(), kBytes, 4096);
}

TEST_CASE("memory that is reserved in huge pages has them all when the file has its size") {
  constexpr std::size_t kBytes = std::size_t{40} << 20U;
  const TempDirectory directory("/dev/shm");
  auto& fs = meshstage::real_file_system();
  const auto probe = fs.open(directory.path() / "probe", OpenMode::kCreateExclusive);
  const bool huge = probe->reserve_huge(0, kBytes);
  if (!huge) WARN("this kernel, or this container, has no huge pages in shared memory");
  /// The page faults of a store to each page of a file that has its first page before.
  const auto faults_of_file = [&](unsigned hands) {
    const auto path = directory.path() / "file";
    const auto file = fs.open(path, OpenMode::kCreateExclusive);
    file->reserve(4096);
    const std::byte mark[] = {std::byte{42}};
    meshstage::write_fully(*file, mark, 4095);
    meshstage::reserve_memory(*file, 4096, kBytes, hands);
    REQUIRE(file->stat().size == kBytes);
    struct stat status{};
    REQUIRE(::stat(path.c_str(), &status) == 0);
    REQUIRE(static_cast<std::uint64_t>(status.st_blocks) * 512 >= kBytes);
    const Mapping mapping(*file, kBytes, MapAccess::kReadWrite);
    REQUIRE(mapping.bytes()[4095] == std::byte{42});
    REQUIRE(mapping.bytes().back() == std::byte{0});
    fs.unlink(path);
    // The first 2 MiB had a page before, so theirs are small.
    return faults_of_stores(mapping.bytes().subspan(meshstage::kHugePageBytes));
  };
  for (const unsigned hands : {0U, 1U, 3U}) {
    // The kernel may refuse a huge page that it has no block for at the moment.
    bool few = false;
    for (int i = 0; i < 10 && !few; ++i) few = faults_of_file(hands) < 40;
    if (huge) REQUIRE(few);
  }
}

TEST_CASE("a shared block is mapped once where it is found, and stays when its maker is gone") {
  constexpr std::size_t kBytes = 8192;
  auto maker = std::make_unique<meshstage::SharedMemory>();
  auto* const block = static_cast<std::byte*>(maker->allocate(kBytes, 4096));
  const auto location = maker->locate(block + 100);
  REQUIRE(location);
  REQUIRE(location->offset == 100);
  const auto mapped = meshstage::map_shared(location->file);
  REQUIRE(mapped->size() == kBytes);
  REQUIRE(mapped->data() != block);
  REQUIRE(meshstage::map_shared(location->file) == mapped);
  block[100] = std::byte{7};
  REQUIRE((*mapped)[100] == std::byte{7});
  maker->deallocate(block, kBytes, 4096);
  maker.reset();
  REQUIRE((*mapped)[100] == std::byte{7});
  REQUIRE_THROWS_AS(meshstage::map_shared(location->file), meshstage::IoError);
}

TEST_CASE("touching where there is no room kills nobody") {
  constexpr std::size_t kBytes = std::size_t{40} << 20U;
  const TempDirectory directory("/dev/shm");
  const auto file =
      meshstage::real_file_system().open(directory.path() / "a", OpenMode::kCreateExclusive);
  file->reserve(kBytes);
  const Mapping mapping(*file, kBytes, MapAccess::kReadWrite);
  file->truncate(4096);  // a store behind it is SIGBUS
  meshstage::first_touch(mapping.bytes(), 2);
  const Mapping read_only(*file, 4096, MapAccess::kRead);
  meshstage::first_touch(read_only.bytes());
  REQUIRE(mapping.bytes()[0] == std::byte{0});
}

TEST_CASE("a copy takes its share of the processors, half of it beside a trainer, at most eight") {
  using meshstage::Beside;
  using meshstage::default_copy_threads;
  meshstage::AvailableProcessors processors;
  const auto threads = [&](unsigned allowed, unsigned ranks) {
    processors.allowed = allowed;
    return std::pair(default_copy_threads(processors, Beside::kNothing, ranks),
                     default_copy_threads(processors, Beside::kTrainer, ranks));
  };
  REQUIRE(threads(1, 1) == std::pair(1U, 1U));
  REQUIRE(threads(2, 1) == std::pair(2U, 1U));
  REQUIRE(threads(2, 8) == std::pair(1U, 1U));
  REQUIRE(threads(16, 1) == std::pair(8U, 8U));
  REQUIRE(threads(16, 2) == std::pair(8U, 4U));
  REQUIRE(threads(16, 0) == std::pair(8U, 8U));
  REQUIRE(threads(192, 8) == std::pair(8U, 8U));
  processors.quota = 3.5;  // of a control group below the cores
  REQUIRE(threads(16, 1) == std::pair(3U, 1U));
  processors.quota = 0.5;
  REQUIRE(threads(16, 1) == std::pair(1U, 1U));
}

TEST_CASE("a mapping of a file in memory shares its bytes") {
  meshstage::MemoryFileSystem fs;
  const auto file = fs.open("/slot", OpenMode::kCreateExclusive);
  REQUIRE_THROWS_AS(Mapping(*file, 4096, MapAccess::kReadWrite), meshstage::SystemError);
  file->reserve(4096);
  const Mapping a(*file, 4096, MapAccess::kReadWrite);
  const Mapping b(*file, 4096, MapAccess::kReadWrite);
  a.bytes()[5] = std::byte{5};
  REQUIRE(b.bytes()[5] == std::byte{5});
}
