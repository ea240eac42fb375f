#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/room.hpp>
#include <meshstage/core/os/memory_file_system.hpp>

#include <string>

#include "tests/support/catch.hpp"

using meshstage::OutOfMemory;
using meshstage::RoomLimits;
using meshstage::RoomRequest;

namespace {

constexpr std::uint64_t kGB = 1'000'000'000;

/// 20 GB of memory, 64 MiB of /dev/shm of which 1 MiB is used.
RoomLimits container() {
  RoomLimits limits;
  limits.memory.mem_available = 20 * kGB;
  limits.space = {63U << 20U, 64U << 20U, true};
  limits.directory = "/dev/shm";
  return limits;
}

std::string refusal(const RoomRequest& request, const RoomLimits& limits) {
  try {
    meshstage::check_room(request, limits);
  } catch (const OutOfMemory& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("there is room up to the last byte of the smallest limit") {
  auto limits = container();
  REQUIRE(refusal({"the vault", 63U << 20U, 1}, limits).empty());
  REQUIRE_FALSE(refusal({"the vault", (63U << 20U) + 1, 1}, limits).empty());
  REQUIRE_FALSE(refusal({"the vault", 63U << 20U, 2}, limits).empty());
  REQUIRE(refusal({"the vault", 0, 64}, limits).empty());
}

TEST_CASE("a small /dev/shm is refused with needed, available, the limit and a remedy that works") {
  REQUIRE(
      refusal({"the vault", 32U << 20U, 4}, container()) ==
      "out of memory: no room for the vault: 134217728 bytes (134.2 MB) needed in /dev/shm by 4 "
      "ranks "
      "on this host, 33554432 bytes each, 66060288 bytes (66.0 MB) available; the limit is the "
      "file "
      "system of /dev/shm (67108864 bytes (67.1 MB) in all); start the container with "
      "--shm-size=130m "
      "(docker run --shm-size=..., or a memory-backed emptyDir at /dev/shm), or name another vault "
      "directory, or stage a smaller state");
  // 130 MiB, less the MiB in use, holds 128 MiB.
  auto larger = container();
  larger.space = {129U << 20U, 130U << 20U, true};
  REQUIRE(refusal({"the vault", 32U << 20U, 4}, larger).empty());
}

TEST_CASE("MemAvailable binds where the file system promises more than there is") {
  auto limits = container();
  limits.space = {24 * kGB, 24 * kGB, true};
  const auto message = refusal({"the vault", 6 * kGB, 4}, limits);
  REQUIRE(message ==
          "out of memory: no room for the vault: 24000000000 bytes (24.0 GB) needed in /dev/shm by "
          "4 ranks on "
          "this host, 6000000000 bytes each, 20000000000 bytes (20.0 GB) available; the limit is "
          "MemAvailable "
          "of /proc/meminfo; use a host with more memory or fewer ranks on this one, or stage a "
          "smaller state");
}

TEST_CASE("what the ranks of a host have already need not be there once more") {
  auto limits = container();
  limits.space = {10 * kGB, 24 * kGB, true};
  CHECK(refusal({"the vault", 6 * kGB, 4, 14 * kGB}, limits).empty());
  CHECK(refusal({"the vault", 6 * kGB, 4, 25 * kGB}, limits).empty());
  const auto message = refusal({"the vault", 6 * kGB, 4, 13 * kGB}, limits);
  CHECK(message.find("11000000000 bytes (11.0 GB) needed in /dev/shm by 4 ranks on this host, "
                     "6000000000 bytes each less the 13000000000 bytes (13.0 GB) that they have") !=
        std::string::npos);
}

TEST_CASE("a control group binds where it is tighter, and is named") {
  auto limits = container();
  limits.space = {24 * kGB, 24 * kGB, true};
  limits.memory.cgroup_headroom = 3 * kGB;
  limits.memory.cgroup = "/sys/fs/cgroup/job";
  const auto message = refusal({"the vault", 4 * kGB, 1}, limits);
  REQUIRE(message.find(
              "3000000000 bytes (3.0 GB) available; the limit is the memory limit of control group "
              "/sys/fs/cgroup/job; raise it (docker run --memory=...)") != std::string::npos);
  REQUIRE(message.find("ranks on this host") == std::string::npos);
}

TEST_CASE("a directory on a disk is bound by the disk alone, plain memory by memory alone") {
  auto limits = container();
  limits.directory = "/scratch/vault";
  limits.space = {100 * kGB, 200 * kGB, false};
  REQUIRE(refusal({"the vault", 90 * kGB, 1}, limits).empty());
  REQUIRE(refusal({"the vault", 101 * kGB, 1}, limits)
              .find("the limit is the file system of /scratch/vault (200000000000 bytes (200.0 GB) "
                    "in all); "
                    "name a vault directory with more room, or stage a smaller state") !=
          std::string::npos);
  limits.directory.clear();
  limits.space = {};
  REQUIRE(refusal({"staging", 19 * kGB, 1}, limits).empty());
  REQUIRE(refusal({"staging", 21 * kGB, 1}, limits).find("no room for staging") !=
          std::string::npos);
}

TEST_CASE("a request that wraps is refused, not accepted") {
  REQUIRE_FALSE(refusal({"the vault", std::uint64_t{1} << 63U, 2}, container()).empty());
  REQUIRE_FALSE(refusal({"the vault", ~std::uint64_t{0}, 1000}, container()).empty());
}

TEST_CASE("limits are read from the system and from the file system given") {
  meshstage::MemoryFileSystem fs({.capacity = 12345});
  const auto limits = meshstage::read_room_limits(fs, "/");
  REQUIRE(limits.space.total == 12345);
  REQUIRE(limits.memory.mem_available > 0);
  const auto shm = meshstage::read_room_limits(meshstage::real_file_system(), "/dev/shm");
  REQUIRE(shm.space.in_memory);
  REQUIRE(shm.space.total > 0);
}
