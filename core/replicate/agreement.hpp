#pragma once
#include <memory>
#include <string>
#include <vector>

#include <meshstage/core/protocol/config.hpp>
#include <meshstage/core/replicate/options.hpp>

/// What follows from a rank's options before anything of the engine exists, and before the rank may
/// touch its vault: for its place in the job.
/// Threads: any.
namespace meshstage::replicate {

/// What the protocol is told of this rank and its job.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<const protocol::Config> config_of(
    const CheckpointerOptions& options);

/// See protocol::Config::data_peers.
[[nodiscard]] MESHSTAGE_API std::vector<int> data_peers(const CheckpointerOptions& options);

/// The options that all ranks must have in common, as text: "blocks of 4194304 bytes, holders
/// 1f0c...".
[[nodiscard]] MESHSTAGE_API std::string agreement(const CheckpointerOptions& options);

}  // namespace meshstage::replicate
