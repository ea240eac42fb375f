#include <meshstage/core/os/available_memory.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/os/process_identity.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "tests/support/catch.hpp"

using meshstage::MemoryFileSystem;

namespace {

void put(MemoryFileSystem& fs, const std::filesystem::path& path, const std::string& text) {
  fs.make_directories(path.parent_path());
  fs.unlink(path);
  meshstage::write_fully(*fs.open(path, meshstage::OpenMode::kCreateExclusive),
                         std::as_bytes(std::span(text)), 0);
}

constexpr std::uint64_t kMeminfo = 1000 * 1024;

void lay_out(MemoryFileSystem& fs, const std::string& groups) {
  put(fs, "/proc/meminfo", "MemTotal:   4000 kB\nMemFree:  10 kB\nMemAvailable:    1000 kB\n");
  put(fs, "/proc/self/cgroup", groups);
}

}  // namespace

TEST_CASE("a process knows itself, and a dead one is not alive") {
  const auto self = meshstage::this_process();
  REQUIRE(self.pid == ::getpid());
  REQUIRE(self.start_time != 0);
  REQUIRE(self.instance != 0);
  REQUIRE(self == meshstage::this_process());
  REQUIRE(meshstage::is_alive(self));
  auto reused = self;
  ++reused.start_time;
  REQUIRE_FALSE(meshstage::is_alive(reused));
  auto other_boot = self;
  other_boot.boot_id = "another";
  REQUIRE_FALSE(meshstage::is_alive(other_boot));
  REQUIRE_FALSE(meshstage::is_alive({}));

  int ends[2] = {-1, -1};
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = 0;
    ::close(ends[1]);
    (void)!::read(ends[0], &byte, 1);
    ::_exit(0);
  }
  ::close(ends[0]);
  auto theirs = self;
  theirs.pid = child;
  // Its start time is in /proc; the identity of another process comes from what it wrote down
  // itself.
  const auto stat = meshstage::read_text(meshstage::real_file_system(),
                                         "/proc/" + std::to_string(child) + "/stat");
  REQUIRE(stat);
  std::size_t at = stat->rfind(')');
  for (int field = 2; field < 22; ++field) at = stat->find(' ', at + 1);
  theirs.start_time = std::stoull(stat->substr(at));
  REQUIRE(meshstage::is_alive(theirs));
  ::close(ends[1]);
  siginfo_t info{};
  REQUIRE(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0);
  REQUIRE_FALSE(meshstage::is_alive(theirs));  // a zombie
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  REQUIRE_FALSE(meshstage::is_alive(theirs));
}

TEST_CASE("this machine says how much memory it has") {
  const auto memory = meshstage::available_memory();
  REQUIRE(memory.mem_available > (1U << 20U));
  REQUIRE(memory.bytes() <= memory.mem_available);
}

TEST_CASE("without a limited control group MemAvailable binds") {
  MemoryFileSystem fs;
  lay_out(fs, "0::/\n");
  put(fs, "/sys/fs/cgroup/memory.max", "max\n");
  put(fs, "/sys/fs/cgroup/memory.current", "5\n");
  const auto memory = meshstage::available_memory(fs);
  REQUIRE(memory.bytes() == kMeminfo);
  REQUIRE_FALSE(memory.cgroup_headroom);
  REQUIRE(memory.limit() == "MemAvailable of /proc/meminfo");
}

TEST_CASE("the tightest version 2 group on the way up binds, reclaimable pages counted as free") {
  MemoryFileSystem fs;
  lay_out(fs, "0::/job/rank\n");
  put(fs, "/sys/fs/cgroup/job/rank/memory.max", "500000\n");
  put(fs, "/sys/fs/cgroup/job/rank/memory.current", "100000\n");
  put(fs, "/sys/fs/cgroup/job/memory.max", "300000\n");
  put(fs, "/sys/fs/cgroup/job/memory.current", "200000\n");
  put(fs, "/sys/fs/cgroup/job/memory.stat", "anon 7\ninactive_file 50000\nactive_file 9\n");
  const auto memory = meshstage::available_memory(fs);
  REQUIRE(memory.bytes() == 150000);
  REQUIRE(memory.cgroup_binds());
  REQUIRE(memory.limit() == "the memory limit of control group /sys/fs/cgroup/job");
}

TEST_CASE("a group above its limit has no headroom, not a huge one") {
  MemoryFileSystem fs;
  lay_out(fs, "0::/\n");
  put(fs, "/sys/fs/cgroup/memory.max", "100\n");
  put(fs, "/sys/fs/cgroup/memory.current", "300\n");
  put(fs, "/sys/fs/cgroup/memory.stat", "inactive_file 1000\n");
  REQUIRE(meshstage::available_memory(fs).bytes() == 100);
  put(fs, "/sys/fs/cgroup/memory.stat", "inactive_file 0\n");
  REQUIRE(meshstage::available_memory(fs).bytes() == 0);
}

TEST_CASE("version 1 groups: the host's path in a container falls back to the top of the mount") {
  MemoryFileSystem fs;
  lay_out(fs, "9:name=systemd:/x\n4:cpu,memory:/docker/abc\n0::/\n");
  put(fs, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "400000\n");
  put(fs, "/sys/fs/cgroup/memory/memory.usage_in_bytes", "150000\n");
  put(fs, "/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n");
  REQUIRE(meshstage::available_memory(fs).bytes() == 300000);
  put(fs, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  REQUIRE_FALSE(meshstage::available_memory(fs).cgroup_headroom);
}

TEST_CASE("no /proc is an error that says so") {
  MemoryFileSystem fs;
  REQUIRE_THROWS_AS(meshstage::available_memory(fs), meshstage::IoError);
}
