#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/error/export.hpp>
#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/failure_domains.hpp>
#include <meshstage/mesh/partners.hpp>
#include <meshstage/mesh/replicated.hpp>

namespace meshstage {

/// A job as a mesh file describes it; everything fits together. The format is in mesh/README.md.
struct MeshDescription {
  DeviceMesh mesh;
  FailureDomains domains;
  PartnerOptions partners;
  Holders holders;  ///< by the policy, or as the file lists them
  bool explicit_holders = false;
  /// Copies of images borrow what lender_of() finds on another host.
  bool spare_replicated = false;
  std::vector<TensorSpec> tensors;
};

/// One thing that is wrong in a mesh file.
struct MeshFileError {
  int line = 0;  ///< from 1; 0 if it is about no line
  int column = 0;
  std::string key;  ///< "tensor[1].placements"; empty if the text is not TOML
  std::string message;
  std::string fix;
};
/// "12:5: tensor[1].placements: ...; fix".
[[nodiscard]] MESHSTAGE_API std::string to_string(const MeshFileError& error);

struct MeshFileResult {
  std::optional<MeshDescription> description;  ///< if there are no errors
  std::vector<MeshFileError> errors;           ///< by line
};

/// What a mesh file may describe at most, so that no file costs more than a GiB to read.
struct MeshFileLimits {
  std::int64_t ranks = std::int64_t{1} << 24;
  /// Ranks times copies.
  std::int64_t copies = std::int64_t{1} << 26;
};

/// Reads the text of a mesh file. Never throws for what is in it.
[[nodiscard]] MESHSTAGE_API MeshFileResult parse_mesh_file(std::string_view text,
                                                           const MeshFileLimits& limits = {});

/// Ranks as a list of numbers and ranges, "0-3,8"; each once. Throws InvalidArgument that shows the
/// form; `at_most` bounds how many there may be.
[[nodiscard]] MESHSTAGE_API std::vector<int> parse_ranks(std::string_view text,
                                                         std::int64_t at_most = std::int64_t{1}
                                                                                << 24);

/// The text of a mesh file. Throws NotFound if it cannot be read, InvalidArgument if it has more
/// than 256 MiB (16 million ranks listed twice have fewer).
[[nodiscard]] MESHSTAGE_API std::string read_mesh_text(const std::string& path);

/// Reads a mesh file. Throws NotFound if it cannot be read, InvalidArgument with the first error
/// (and how many more) if something is wrong in it.
[[nodiscard]] MESHSTAGE_API MeshDescription load_mesh_file(const std::string& path);

}  // namespace meshstage
