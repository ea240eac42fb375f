#include <fmt/format.h>

#include <algorithm>
#include <ostream>

#include <meshstage/mesh/text.hpp>
#include "tools/mesh/json_out.hpp"
#include "tools/mesh/options.hpp"
#include "tools/mesh/words.hpp"

namespace meshstage::tools {
namespace {

// What is right in form and yet perhaps not what was meant.
std::vector<std::string> warnings(const MeshDescription& job) {
  std::vector<std::string> out;
  const int world = job.domains.world_size();
  int at_home = 0;
  int bare = 0;
  for (int r = 0; r < world; ++r) {
    const auto& mine = job.holders[static_cast<std::size_t>(r)];
    bare += mine.empty();
    at_home += !mine.empty() && std::all_of(mine.begin(), mine.end(), [&](int h) {
      return job.domains.host_of(h) == job.domains.host_of(r);
    });
  }
  if (bare > 0) out.push_back(fmt::format("{} of {} ranks have no copy anywhere", bare, world));
  if (at_home > 0) {
    out.push_back(fmt::format(
        "{} of {} ranks have all copies on their own host: policy across-hosts avoids that",
        at_home, world));
  }
  if (world > job.mesh.size()) {
    out.push_back(
        fmt::format("{} of {} ranks are not in the mesh", world - job.mesh.size(), world));
  }
  return out;
}

}  // namespace

int mesh_check(const CheckOptions& options, std::ostream& out) {
  const MeshFileResult result = parse_mesh_file(read_mesh_text(options.file));
  const auto warned =
      result.description ? warnings(*result.description) : std::vector<std::string>();
  if (options.json) {
    JsonOut json(out);
    json.begin_object();
    json.key("file").value(options.file);
    json.key("ok").value(result.description.has_value());
    json.key("errors").begin_list();
    for (const MeshFileError& e : result.errors) {
      json.begin_object();
      json.key("line").value(std::int64_t{e.line});
      json.key("column").value(std::int64_t{e.column});
      json.key("key").value(e.key);
      json.key("message").value(e.message);
      json.key("fix").value(e.fix);
      json.end_object();
    }
    json.end_list();
    json.key("warnings").list(warned);
    json.end_object();
    json.finish();
  } else {
    for (const MeshFileError& e : result.errors) {
      out << fmt::format("{}:{}\n", options.file, to_string(e));
    }
    for (const std::string& w : warned) out << fmt::format("{}: warning: {}\n", options.file, w);
    if (result.description) {
      const MeshDescription& job = *result.description;
      out << fmt::format("{}: ok: mesh {}, {}, {}, {}\n", options.file, dims_words(job.mesh),
                         text::count(job.domains.hosts(), "host"), partners_words(job),
                         text::count(static_cast<std::int64_t>(job.tensors.size()), "tensor"));
    }
  }
  return result.description ? 0 : 1;
}

}  // namespace meshstage::tools
