#pragma once
#include <string>
#include <vector>

#include <meshstage/core/replicate/options.hpp>

/// What follows from a rank's options before anything of the engine exists, and before the rank may
/// touch its vault: for its place in the job.
namespace meshstage::replicate {

/// See protocol::Config::data_peers.
[[nodiscard]] MESHSTAGE_API std::vector<int> data_peers(const CheckpointerOptions& options);

/// The options that all ranks must have in common, as text: "blocks of 4194304 bytes, holders
/// 1f0c...".
[[nodiscard]] MESHSTAGE_API std::string agreement(const CheckpointerOptions& options);

}  // namespace meshstage::replicate
