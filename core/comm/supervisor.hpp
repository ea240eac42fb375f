#pragma once
#include <cstdint>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Reports to the program that started this rank (`meshstage run`) that it is part of a generation:
/// one datagram, "joined RANK GENERATION", to the Unix socket at `path` (MESHSTAGE_SUPERVISOR).
/// The supervisor tells a rank that dies in a running job from one that cannot even start by it.
/// Does nothing where `path` is empty or nobody listens there: the job does not depend on it.
/// Never blocks. Any thread. The idea is systemd's sd_notify().
MESHSTAGE_API void report_joined(const std::string& path, int rank,
                                 std::uint64_t generation) noexcept;

}  // namespace meshstage
