#pragma once
#include <span>

#include <meshstage/core/reshard/assembly_impl.hpp>

namespace meshstage::detail {

/// Fills the targets that lie in host memory, by at most `hands` threads (0: as many as a copy that
/// the trainer waits for). Memory that several targets share is written once where their parts are
/// the same bytes in a row, else by one thread, in order: check_overlaps() has found that they get
/// the same bytes.
void write_to_host(std::span<const BoxTarget> targets, unsigned hands);

}  // namespace meshstage::detail
