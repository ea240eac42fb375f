#pragma once
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include <meshstage/mesh/mesh_file.hpp>
#include <meshstage/mesh/survive.hpp>

/// What the commands are asked, in the words of the command line, and the commands themselves. Each
/// prints its answer to `out` and returns the exit code: 0, or 1 if the answer is negative. Wrong
/// input throws InvalidArgument or NotFound with one line that contains the valid form.
namespace meshstage::tools {

/// --mesh, --names, --ranks, or a mesh file.
struct MeshWords {
  std::string mesh;       ///< "2,4"
  std::string names;      ///< "dp,tp", or empty
  std::string ranks;      ///< "3,7,0-2", or empty: in order
  std::string file = {};  ///< instead of all three
};

/// A mesh with hosts, partners and tensors: from a mesh file, or from these words.
struct JobWords {
  std::string file;  ///< empty: from `mesh` and the host words
  MeshWords mesh;
  std::int64_t ranks_per_host = 0;   ///< 0: every rank is its own host
  std::int64_t hosts_per_rack = 0;   ///< 0: racks are not known
  std::string host_sizes;            ///< "8,8,6": ranks of each host, instead of ranks_per_host
  std::string policy;                ///< empty: the file's, or half-shift
  int copies = -1;                   ///< -1: the file's, or 1
  bool borrow_replicated = false;    ///< true, or as the file says
  std::vector<std::string> tensors;  ///< "w=f32[1024,512]:S(0),R"; in addition to the file's
};

/// From the words; or the mesh of `words.file`.
[[nodiscard]] DeviceMesh read_mesh(const MeshWords& words);
[[nodiscard]] MeshDescription read_job(const JobWords& words);
/// "2,4": whole numbers, none below `least`. `what` says in errors what they are.
[[nodiscard]] std::vector<std::int64_t> read_numbers(const std::string& text, std::int64_t least,
                                                     const std::string& what);
/// "dp,tp"; nothing of an empty text.
[[nodiscard]] std::vector<std::string> read_names(const std::string& text);

struct ShowOptions {
  MeshWords mesh;
  std::string slice;  ///< names, or empty
  std::string only;   ///< ranks to show, or empty: all (of a table, the first)
  bool json = false;
  bool compact = false;  ///< of JSON: ranks at equal distances as first, stride and size
};
int mesh_show(const ShowOptions& options, std::ostream& out);

struct ShardOptions {
  MeshWords mesh;
  /// "13,7"; "" is a tensor without dimensions. Of a mesh file: the name of one of its tensors,
  /// too.
  std::string tensor;
  std::optional<std::string> placements;  ///< nothing: those of the file's tensor
  bool json = false;
  std::optional<std::size_t> width = {};  ///< columns of the picture at most; nothing: any
};
int mesh_shard(const ShardOptions& options, std::ostream& out);

struct ReshardOptions {
  std::string from, to;                      ///< sizes of the meshes
  std::string tensor;                        ///< as ShardOptions::tensor, sizes alone
  std::string placements;                    ///< before
  std::optional<std::string> to_placements;  ///< nothing: the same, or the first cut before
  bool json = false;
};
int mesh_reshard(const ReshardOptions& options, std::ostream& out);

struct PartnersOptions {
  JobWords job;
  double bandwidth = 0;  ///< GB/s (1e9 bytes) of a host's link in each direction; 0: not given
  bool json = false;
};
int mesh_partners(const PartnersOptions& options, std::ostream& out);

struct SurviveWords {
  JobWords job;
  std::string lose = "host";
  int require = -1;  ///< exit 1 if fewer losses are survived; -1: only say
  bool json = false;
};
int mesh_survive(const SurviveWords& options, std::ostream& out);

struct CheckOptions {
  std::string file;
  bool json = false;
};
int mesh_check(const CheckOptions& options, std::ostream& out);

struct DrawOptions {
  std::string file;
  std::string output;  ///< an SVG file; empty or "-": to `out`
  std::string tensor;  ///< whose shards are coloured; empty: the first
};
int mesh_draw(const DrawOptions& options, std::ostream& out);

}  // namespace meshstage::tools
