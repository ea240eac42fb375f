#include <meshstage/mesh/replicated.hpp>

#include <algorithm>
#include <array>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/text_impl.hpp>

namespace meshstage {
namespace {

constexpr std::array<std::pair<std::string_view, int>, 12> kTypes{{{"bool", 1},
                                                                   {"u8", 1},
                                                                   {"i8", 1},
                                                                   {"i16", 2},
                                                                   {"i32", 4},
                                                                   {"i64", 8},
                                                                   {"f16", 2},
                                                                   {"bf16", 2},
                                                                   {"f32", 4},
                                                                   {"f64", 8},
                                                                   {"c64", 8},
                                                                   {"c128", 16}}};

void check_fit(const DeviceMesh& mesh, std::span<const Placement> placements) {
  if (placements.size() != mesh.ndim()) {
    throw InvalidArgument("placements " + to_string(placements) + " do not fit " +
                          mesh.to_string() + ": give one for each dimension");
  }
}

}  // namespace

std::int64_t element_bytes_of(std::string_view dtype) {
  std::string known;
  for (const auto& [name, bytes] : kTypes) {
    if (name == dtype) return bytes;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  throw InvalidArgument("dtype " + text::quoted(dtype) + ": use " + known);
}

TensorSpec parse_tensor_spec(std::string_view text) {
  const auto fail = [&]() {
    throw InvalidArgument("tensor " + text::quoted(text) +
                          ": write NAME=DTYPE[SIZES]:PLACEMENTS, such as w=f32[1024,512]:S(0),R");
  };
  const auto equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0) fail();
  TensorSpec out;
  out.name = std::string(text::trimmed(text.substr(0, equals)));
  const std::string_view rest = text.substr(equals + 1);
  const auto open = rest.find('[');
  const auto close = rest.find("]:");
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) fail();
  out.dtype = std::string(text::trimmed(rest.substr(0, open)));
  out.element_bytes = element_bytes_of(out.dtype);
  const std::string_view sizes = text::trimmed(rest.substr(open + 1, close - open - 1));
  for (std::size_t from = 0; !sizes.empty();) {
    const auto comma = sizes.find(',', from);
    const auto size = text::number<std::int64_t>(text::trimmed(sizes.substr(from, comma - from)));
    if (!size) fail();
    out.shape.push_back(*size);
    if (comma == std::string_view::npos) break;
    from = comma + 1;
  }
  out.placements = parse_placements(rest.substr(close + 2));
  (void)checked_bytes(out);
  return out;
}

std::int64_t checked_bytes(const TensorSpec& tensor) {
  std::int64_t bytes = tensor.element_bytes;
  bool empty = false;
  for (const std::int64_t s : tensor.shape) {
    if (s < 0) {
      throw InvalidArgument("tensor " + text::quoted(tensor.name) + " has size " +
                            std::to_string(s) + ": sizes are at least 0");
    }
    empty = empty || s == 0;
    const auto next = text::product(bytes, std::max<std::int64_t>(s, 1));
    if (!next) {
      throw InvalidArgument("tensor " + text::quoted(tensor.name) + " of sizes " +
                            text::list<std::int64_t>(tensor.shape) +
                            " has more than 2^63-1 bytes: use smaller sizes");
    }
    bytes = *next;
  }
  return empty ? 0 : bytes;
}

std::vector<int> same_shard_ranks(const DeviceMesh& mesh, std::span<const Placement> placements,
                                  int rank) {
  check_fit(mesh, placements);
  if (!mesh.contains(rank)) {
    throw InvalidArgument("rank " + std::to_string(rank) + " is not in " + mesh.to_string());
  }
  std::vector<std::string> replicated;
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    if (placements[d].is_replicate()) replicated.push_back(mesh.names()[d]);
  }
  if (replicated.empty()) return {rank};
  return mesh.slice(replicated, rank).ranks();
}

bool same_shard(const DeviceMesh& mesh, std::span<const Placement> placements, int a, int b) {
  check_fit(mesh, placements);
  const auto here = mesh.coordinate(a);
  const auto there = mesh.coordinate(b);
  if (!here || !there) return false;
  for (std::size_t d = 0; d < here->size(); ++d) {
    if ((*here)[d] != (*there)[d] && !placements[d].is_replicate()) return false;
  }
  return true;
}

}  // namespace meshstage
