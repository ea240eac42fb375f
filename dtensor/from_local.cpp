// from_local() and distribute_tensor(): what begins with ranks that do not know yet what the others
// have. Every rank tells all others what it was given; then all judge the same data, so that they
// throw the same error or none.
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/dtensor.hpp>
#include <meshstage/dtensor/spec_impl.hpp>

namespace meshstage {
namespace {

using nlohmann::json;

/// What a rank was given. Undefined tensors have no dtype.
struct Given {
  std::string problem;
  std::string dtype;
  Shape local;
  std::string placements;
  std::optional<Shape> shape;
  std::optional<Strides> stride;
};

std::vector<Given> tell_all(const Given& mine, MeshGroups& groups, Deadline deadline) {
  json j{{"problem", mine.problem},
         {"dtype", mine.dtype},
         {"local", mine.local},
         {"placements", mine.placements}};
  if (mine.shape) j["shape"] = *mine.shape;
  if (mine.stride) j["stride"] = *mine.stride;
  const std::string text = j.dump();
  const auto group = groups.group(groups.mesh().names());
  const auto texts = collectives::all_gather_bytes(
      *group, std::as_bytes(std::span(text.data(), text.size())), deadline);
  std::vector<Given> all;
  for (const auto& bytes : texts) {
    const auto* begin = reinterpret_cast<const char*>(bytes.data());
    const json other = json::parse(begin, begin + bytes.size());
    Given& given = all.emplace_back();
    given.problem = other.at("problem").get<std::string>();
    given.dtype = other.at("dtype").get<std::string>();
    given.local = other.at("local").get<Shape>();
    given.placements = other.at("placements").get<std::string>();
    if (other.contains("shape")) given.shape = other["shape"].get<Shape>();
    if (other.contains("stride")) given.stride = other["stride"].get<Strides>();
  }
  return all;
}

InvalidArgument wrong(int rank, const std::string& what) {
  return make_error<InvalidArgument>("rank " + std::to_string(rank) + ": " + what, rank);
}

/// Throws for the first rank that was given something else than most.
template <class F>
void check_alike(const std::vector<Given>& all, const DeviceMesh& mesh, const char* what,
                 F&& text) {
  std::map<std::string, int> count;
  for (const Given& g : all) ++count[text(g)];
  if (count.size() == 1) return;
  std::size_t usual = 0;
  for (std::size_t i = 1; i < all.size(); ++i) {
    if (count[text(all[i])] > count[text(all[usual])]) usual = i;
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (text(all[i]) == text(all[usual])) continue;
    throw wrong(mesh.rank_at(static_cast<std::int64_t>(i)),
                std::string(what) + " " + text(all[i]) + ", but rank " +
                    std::to_string(mesh.rank_at(static_cast<std::int64_t>(usual))) + " has " +
                    text(all[usual]) + "; give all ranks the same");
  }
}

void check_problems(const std::vector<Given>& all, const DeviceMesh& mesh) {
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!all[i].problem.empty()) {
      throw wrong(mesh.rank_at(static_cast<std::int64_t>(i)), all[i].problem);
    }
  }
}

std::string text(const std::optional<Shape>& shape) { return shape ? to_string(*shape) : "(none)"; }

/// Sizes of the whole: along a sharded dimension the local sizes added up, over the ranks that are
/// first in all mesh dimensions that do not cut it.
Shape sum_of_locals(const std::vector<Given>& all, const DeviceMesh& mesh,
                    const Placements& placements) {
  Shape shape = all.front().local;
  for (std::size_t t = 0; t < shape.size(); ++t) {
    shape[t] = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const auto at = *mesh.coordinate(mesh.rank_at(static_cast<std::int64_t>(i)));
      bool counts = true;
      for (std::size_t d = 0; d < at.size(); ++d) {
        counts = counts && (at[d] == 0 || placements[d].is_shard(static_cast<int>(t)));
      }
      if (counts) shape[t] += all[i].local[t];
    }
  }
  return shape;
}

}  // namespace

DTensor DTensor::from_local(const Tensor& local, MeshGroups& groups, const Placements& placements,
                            Deadline deadline, const FromLocalOptions& options) {
  const DeviceMesh& mesh = groups.mesh();
  Given mine;
  mine.placements = meshstage::to_string(placements);
  mine.shape = options.shape;
  mine.stride = options.stride;
  if (local.defined()) {
    mine.dtype = std::string(meshstage::to_string(local.dtype()));
    mine.local = local.shape();
  } else {
    mine.problem =
        "from_local() got an undefined local tensor; a rank without elements gives an "
        "empty one";
  }
  const auto all = tell_all(mine, groups, deadline);
  check_problems(all, mesh);
  check_alike(all, mesh, "placements", [](const Given& g) { return g.placements; });
  check_alike(all, mesh, "a local tensor of", [](const Given& g) { return g.dtype; });
  check_alike(all, mesh, "a local tensor whose number of dimensions is",
              [](const Given& g) { return std::to_string(g.local.size()); });
  check_alike(all, mesh, "global shape", [](const Given& g) { return text(g.shape); });
  check_alike(all, mesh, "global strides", [](const Given& g) { return text(g.stride); });

  DTensorSpec spec{mesh, placements, local.dtype(), {}, {}};
  if (options.shape) {
    spec.shape = *options.shape;
  } else {
    // Checks number and dimensions of the placements; the shape is not known yet.
    const Layout layout(mesh.shape(), Shape(mine.local.size(), 0), placements);
    spec.shape = sum_of_locals(all, mesh, layout.placements());
  }
  spec.stride = options.stride ? *options.stride : contiguous_strides(spec.shape);
  dtensor::check_spec(spec);
  const Layout layout(mesh.shape(), spec.shape, spec.placements);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const int rank = mesh.rank_at(static_cast<std::int64_t>(i));
    const LocalShard part = layout.at(*mesh.coordinate(rank));
    if (all[i].local == part.shape) continue;
    throw wrong(rank, "its local tensor is " + meshstage::to_string(all[i].local) +
                          ", but its part of " + spec.to_string() + " is " +
                          meshstage::to_string(part.shape) +
                          (options.shape ? ""
                                         : "; the global shape was taken as the sum of the local "
                                           "ones: give FromLocalOptions::shape if that is wrong"));
  }
  return {local, std::make_shared<const DTensorSpec>(std::move(spec)), groups.rank()};
}

DTensor distribute_tensor(const Tensor& full, MeshGroups& groups, const Placements& placements,
                          Deadline deadline) {
  const DeviceMesh& mesh = groups.mesh();
  const int first = mesh.rank_at(std::int64_t{0});
  Given mine;
  mine.placements = to_string(placements);
  if (groups.rank() == first) {
    if (!full.defined()) {
      mine.problem =
          "distribute_tensor() takes the tensor of the mesh's first rank, and it has none";
    } else if (!full.device().is_cpu()) {
      mine.problem = "distribute_tensor() takes a CPU tensor, this one is on " +
                     to_string(full.device()) + "; copy it to the CPU first";
    } else {
      mine.dtype = std::string(to_string(full.dtype()));
      mine.shape = full.shape();
      mine.stride = full.strides();
    }
  }
  const auto all = tell_all(mine, groups, deadline);
  check_problems(all, mesh);
  check_alike(all, mesh, "placements", [](const Given& g) { return g.placements; });
  const Given& given = all.front();
  DTensorSpec spec{mesh, placements, dtype_from_string(given.dtype).value(), *given.shape,
                   *given.stride};
  if (!dtensor::is_dense(spec.shape, spec.stride)) spec.stride = contiguous_strides(spec.shape);
  dtensor::check_spec(spec);
  const auto shard = local_shard(mesh, groups.rank(), spec.shape, spec.placements);
  const Tensor result = Tensor::empty(shard.shape, spec.dtype);
  dtensor::redistribute_into(groups.rank() == first ? full : Tensor(),
                             dtensor::Side::at_first_rank(mesh, spec.shape), spec.placements,
                             result, groups, deadline);
  return DTensor::from_spec(result, std::move(spec), groups.rank());
}

}  // namespace meshstage
