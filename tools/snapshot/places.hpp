#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/vault/listing.hpp>

#include "tools/snapshot/snapshot.hpp"

namespace meshstage::tools {

/// What there is on this host.
struct HostImages {
  std::vector<VaultListing> vaults;
  std::vector<PersistedImage> files;
};
/// Vaults and persisted images at these places; of `job` alone unless it is empty. Links are not
/// followed, directories that may not be read are passed over. Throws NotFound for a directory that
/// is not there.
HostImages find_images(const Places& places, std::string_view job);
/// The vaults alone.
std::vector<VaultListing> find_vaults(const Places& places, std::string_view job);

/// "/dev/shm and the jobs' default directories", or those given: where these functions look.
std::string places_text(const Places& places);

/// How the commands name an image on this host: JOB/RANK[@[GENERATION.]STEP][:HOLDER]. A generation
/// is given as messages show it, which means the newest run that has it, or by its whole number.
struct ImageName {
  std::string job;
  int rank = 0;
  std::optional<std::uint64_t> generation, step;
  std::optional<int> holder;  ///< In whose vault (or written by whom); any if not given.
};
/// Nothing if it is not such a name.
std::optional<ImageName> parse_image_name(std::string_view text);
/// In full: "gpt2/2@3.85:0"; the holder is left out where it is the rank itself. `whole`: with the
/// whole number of the generation, which an image of an older run needs.
std::string image_name(const ImageIdentity& identity, int holder, bool whole = false);

}  // namespace meshstage::tools
