#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/room.hpp>

#include <algorithm>
#include <array>
#include <limits>

namespace meshstage {

namespace {

/// "6000000000 bytes (6.0 GB)", GB = 1e9.
std::string in_bytes(std::uint64_t n) {
  constexpr std::array<const char*, 5> kUnits{"kB", "MB", "GB", "TB", "PB"};
  std::string text = std::to_string(n) + " bytes";
  if (n < 1000) return text;
  std::uint64_t tenths = n / 100;
  std::size_t unit = 0;
  for (; tenths >= 10000 && unit + 1 < kUnits.size(); ++unit) tenths /= 1000;
  return text + " (" + std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " " +
         kUnits[unit] + ")";
}

std::uint64_t times(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<std::uint64_t>::max()
                                                : product;
}

bool is_shared_memory(const std::filesystem::path& directory) {
  const auto normal = directory.lexically_normal().native();
  return normal == "/dev/shm" || normal.rfind("/dev/shm/", 0) == 0;
}

/// What makes the file system large enough, for these bytes in all.
std::string remedy_of_space(const RoomLimits& limits, std::uint64_t needed) {
  if (!is_shared_memory(limits.directory)) return "name a vault directory with more room";
  // What is there already counts as well; rounded up so that the number works as it stands.
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20U;
  const std::uint64_t used =
      limits.space.total - std::min(limits.space.total, limits.space.available);
  std::uint64_t total = 0;
  if (__builtin_add_overflow(used, needed, &total)) total = needed;
  return "start the container with --shm-size=" + std::to_string(total / kMiB + 1) +
         "m (docker run --shm-size=..., or a memory-backed emptyDir at /dev/shm), or name another "
         "vault directory";
}

std::uint64_t sum_of(const RoomRequest& request) {
  const std::uint64_t all =
      times(request.bytes_per_rank, static_cast<std::uint64_t>(std::max(request.local_ranks, 1)));
  return all - std::min(all, request.held);
}

std::uint64_t memory_of(const RoomLimits& limits) {
  const bool counts = limits.directory.empty() || limits.space.in_memory;
  return counts ? limits.memory.bytes() : std::numeric_limits<std::uint64_t>::max();
}

std::uint64_t space_of(const RoomLimits& limits) {
  return limits.directory.empty() ? std::numeric_limits<std::uint64_t>::max()
                                  : limits.space.available;
}

}  // namespace

RoomLimits read_room_limits(FileSystem& fs, const std::filesystem::path& directory) {
  RoomLimits limits;
  limits.memory = fs.stat("/proc/meminfo") ? available_memory(fs) : available_memory();
  limits.directory = directory;
  limits.space.in_memory = true;
  if (!directory.empty()) limits.space = fs.free_space(directory);
  return limits;
}

void check_room(const RoomRequest& request, const RoomLimits& limits) {
  if (sum_of(request) > std::min(memory_of(limits), space_of(limits)))
    throw_no_room(request, limits, "");
}

void throw_no_room(const RoomRequest& request, const RoomLimits& limits,
                   std::string_view system_says) {
  const std::uint64_t needed = sum_of(request);
  const std::uint64_t memory = memory_of(limits);
  const std::uint64_t space = space_of(limits);
  std::string message = "no room for " + request.what + ": " + in_bytes(needed) + " needed";
  if (!limits.directory.empty()) message += " in " + limits.directory.native();
  if (request.local_ranks > 1) {
    message += " by " + std::to_string(request.local_ranks) + " ranks on this host, " +
               std::to_string(request.bytes_per_rank) + " bytes each";
    if (request.held > 0) message += " less the " + in_bytes(request.held) + " that they have";
  }
  message += ", " + in_bytes(std::min(memory, space)) + " available; the limit is ";
  if (space <= memory && !limits.directory.empty()) {
    message += "the file system of " + limits.directory.native() + " (" +
               in_bytes(limits.space.total) + " in all); " + remedy_of_space(limits, needed);
  } else {
    message += limits.memory.limit();
    message += limits.memory.cgroup_binds()
                   ? "; raise it (docker run --memory=...)"
                   : "; use a host with more memory or fewer ranks on this one";
  }
  message += ", or stage a smaller state";
  if (!system_says.empty()) message.append(" (").append(system_says).append(")");
  throw make_error<OutOfMemory>(message, {}, {}, limits.directory.native());
}

}  // namespace meshstage
