#include <meshstage/core/os/available_processors.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/os/memory_file_system.hpp>

#include <sched.h>

#include <string>
#include <thread>

#include "tests/support/catch.hpp"

using meshstage::MemoryFileSystem;

namespace {

void put(MemoryFileSystem& fs, const std::filesystem::path& path, const std::string& text) {
  fs.make_directories(path.parent_path());
  fs.unlink(path);
  meshstage::write_fully(*fs.open(path, meshstage::OpenMode::kCreateExclusive),
                         std::as_bytes(std::span(text)), 0);
}

void lay_out(MemoryFileSystem& fs, const std::string& list, const std::string& groups) {
  put(fs, "/proc/thread-self/status",
      "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t" + list + "\nMems_allowed:\t1\n");
  put(fs, "/proc/self/cgroup", groups);
}

}  // namespace

TEST_CASE("processors are those of the calling thread's affinity") {
  MemoryFileSystem fs;
  lay_out(fs, "0-3,8,10-11", "0::/\n");
  const auto processors = meshstage::available_processors(fs);
  REQUIRE(processors.allowed == 7);
  REQUIRE_FALSE(processors.quota);
  REQUIRE(processors.count() == 7);
  for (const auto* const list : {"", "3-1", "x", "1,"}) {
    lay_out(fs, list, "0::/\n");
    REQUIRE(meshstage::available_processors(fs).count() ==
            std::max(1U, std::thread::hardware_concurrency()));
  }

  unsigned here = 0;
  std::thread([&] {  // one of this machine's, and another thread than the process's first
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<std::size_t>(::sched_getcpu()), &one);
    if (::sched_setaffinity(0, sizeof one, &one) == 0)
      here = meshstage::available_processors().allowed;
  })
      .join();
  REQUIRE(here == 1);
}

TEST_CASE("the tightest quota of all groups around the process binds, rounded down") {
  MemoryFileSystem fs;
  lay_out(fs, "0-15", "0::/job/rank\n");
  put(fs, "/sys/fs/cgroup/job/rank/cpu.max", "max 100000\n");
  put(fs, "/sys/fs/cgroup/job/cpu.max", "350000 100000\n");
  put(fs, "/sys/fs/cgroup/cpu.max", "800000 100000\n");
  const auto processors = meshstage::available_processors(fs);
  REQUIRE(processors.allowed == 16);
  REQUIRE(processors.count() == 3);
  REQUIRE(processors.cgroup == "/sys/fs/cgroup/job");
  put(fs, "/sys/fs/cgroup/cpu.max", "50000 100000\n");  // less than one
  REQUIRE(meshstage::available_processors(fs).count() == 1);
  put(fs, "/sys/fs/cgroup/job/cpu.max", "max 100000\n");
  put(fs, "/sys/fs/cgroup/cpu.max", "9900000 100000\n");  // more than there are
  REQUIRE(meshstage::available_processors(fs).count() == 16);
}

TEST_CASE("quotas of version 1 groups, and files that say nothing") {
  MemoryFileSystem fs;
  lay_out(fs, "0-7", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n");
  put(fs, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n");
  put(fs, "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  REQUIRE(meshstage::available_processors(fs).count() == 2);
  put(fs, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  REQUIRE(meshstage::available_processors(fs).count() == 8);
  put(fs, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n");
  put(fs, "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "0\n");
  REQUIRE(meshstage::available_processors(fs).count() == 8);
  REQUIRE(meshstage::available_processors().count() >= 1);  // this machine's

  meshstage::FaultyFileSystem hidden(fs);  // a sandbox that refuses /sys
  hidden.fail_from(1, EACCES);
  REQUIRE(meshstage::available_processors(hidden).count() ==
          std::max(1U, std::thread::hardware_concurrency()));
}
