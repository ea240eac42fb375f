#pragma once
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/protocol/config.hpp>
#include <meshstage/core/replicate/options.hpp>

/// Functions of a rank's options that the facade needs to join the job: before the engine exists,
/// and before the rank may touch its vault.
/// Threads: any.
namespace meshstage::replicate {

/// The protocol's constants for this rank and its job.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<const protocol::Config> config_of(
    const CheckpointerOptions& options);

/// See protocol::Config::data_peers.
[[nodiscard]] MESHSTAGE_API std::vector<int> data_peers(const CheckpointerOptions& options);

/// Whether images of another number of ranks stay in memory until a step of this number is
/// complete: with any_world, in a job that writes no files of its own. Else they become files.
/// Reads the environment: an Engine asks once.
[[nodiscard]] MESHSTAGE_API bool keeps_old_in_memory(const CheckpointerOptions& options);

/// The options that must be the same on all ranks, as text: "blocks of 4194304 bytes, holders
/// 1f0c...".
[[nodiscard]] MESHSTAGE_API std::string agreement(const CheckpointerOptions& options);

}  // namespace meshstage::replicate
