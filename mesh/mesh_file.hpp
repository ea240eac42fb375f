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

/// A job as a mesh file describes it; all parts fit each other. The format is in mesh/README.md.
struct MeshDescription {
  DeviceMesh mesh;
  FailureDomains domains;
  PartnerOptions partners;
  Holders holders;  ///< as the policy makes them, or as the file lists them
  bool explicit_holders = false;
  /// Copies of images borrow tensors from the ranks that lender_of() finds on other hosts.
  bool borrow_replicated = false;
  std::vector<TensorSpec> tensors;
};

/// One error in a mesh file.
struct MeshFileError {
  int line = 0;  ///< from 1; 0 if the error is about no line
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

/// The largest job that a mesh file may describe, so that no file costs more than a GiB to read.
struct MeshFileLimits {
  std::int64_t ranks = std::int64_t{1} << 24;
  /// Ranks times copies.
  std::int64_t copies = std::int64_t{1} << 26;
};

/// Reads the text of a mesh file. Never throws because of the text: errors are in the result.
[[nodiscard]] MESHSTAGE_API MeshFileResult parse_mesh_file(std::string_view text,
                                                           const MeshFileLimits& limits = {});

/// Reads ranks as a list of numbers and ranges, "0-3,8", each rank once. `at_most` bounds their
/// number. Throws InvalidArgument; the message shows the form.
[[nodiscard]] MESHSTAGE_API std::vector<int> parse_ranks(std::string_view text,
                                                         std::int64_t at_most = std::int64_t{1}
                                                                                << 24);

/// The text of a mesh file. Throws NotFound if the file cannot be read, InvalidArgument if it has
/// more than 256 MiB (a list with 16 million ranks twice is shorter).
[[nodiscard]] MESHSTAGE_API std::string read_mesh_text(const std::string& path);

/// Reads a mesh file. Throws NotFound if the file cannot be read, and InvalidArgument with the
/// first error (and how many more there are) if it has errors.
[[nodiscard]] MESHSTAGE_API MeshDescription load_mesh_file(const std::string& path);

}  // namespace meshstage
