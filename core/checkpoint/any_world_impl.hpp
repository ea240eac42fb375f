#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/replicate/reads.hpp>
#include <meshstage/core/reshard/assembly.hpp>

namespace meshstage::detail {

/// A step of another number of ranks, which is gone on from.
struct OldWorldStep {
  ImageId id;
  int world_size = 0;
};

/// The same with this rank's part of it, still to be written.
struct TakenStep {
  OldWorldStep step;
  Assembly assembly;
};

/// Where the files lie, and what is said about them.
struct OldFiles {
  FileSystem& fs;
  const std::filesystem::path& directory;
  const std::string& job;
  const ReshardOptions& options;
  std::function<void(const std::string&)> warn;
  replicate::Reads& reads;  ///< Where a rank shows what it reads.
};

/// Collective over `group`. Ranks may call it `length` after one another, and may compare for so
/// long; the reading takes as long as the disk gives something. Rank 0 says which step of another
/// number of ranks is gone on from, if any (the others' `of_root` is not looked at). Each rank
/// compares it with its state. Nothing if there is no such step. What one rank throws while it
/// compares, every rank throws. Writes nothing: that is for TakenStep::assembly, which only exists
/// if all ranks have one.
[[nodiscard]] std::optional<TakenStep> plan_old_step(const OldFiles& files, const Value& state,
                                                     const std::optional<OldWorldStep>& of_root,
                                                     ProcessGroup& group,
                                                     std::chrono::milliseconds length);

}  // namespace meshstage::detail
