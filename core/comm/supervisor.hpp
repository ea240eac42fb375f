#pragma once
#include <cstdint>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Reports to the program that started this rank (`meshstage run`) that the rank is part of a
/// generation. The report is one datagram, "joined RANK GENERATION", to the Unix socket at `path`
/// (MESHSTAGE_SUPERVISOR). By this report the supervisor tells a rank that dies in a running job
/// from a rank that cannot even start. Does nothing where `path` is empty or no program listens:
/// the job does not depend on the report. Never blocks. Threads: any. The idea is systemd's
/// sd_notify().
MESHSTAGE_API void report_joined(const std::string& path, int rank,
                                 std::uint64_t generation) noexcept;

}  // namespace meshstage
