#include <meshstage/mesh/placement.hpp>

#include <array>
#include <ostream>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {
namespace {

constexpr std::array<std::pair<std::string_view, ReduceOp>, 5> kOps{
    {{"sum", ReduceOp::kSum},
     {"avg", ReduceOp::kAvg},
     {"product", ReduceOp::kProduct},
     {"min", ReduceOp::kMin},
     {"max", ReduceOp::kMax}}};
constexpr const char* kForms = "write R, S(DIM) or P(sum|avg|product|min|max)";

[[noreturn]] void wrong(std::string_view text) {
  throw InvalidArgument("placement " + text::quoted(text) + ": " + kForms);
}

}  // namespace

std::string_view to_string(ReduceOp op) noexcept {
  for (const auto& [name, value] : kOps) {
    if (value == op) return name;
  }
  return "sum";
}

std::string Placement::to_string() const {
  switch (kind_) {
    case Kind::kReplicate:
      return "R";
    case Kind::kShard:
      return "S(" + std::to_string(dim_) + ")";
    case Kind::kPartial:
      return "P(" + std::string(meshstage::to_string(op_)) + ")";
  }
  return {};
}

std::string to_string(std::span<const Placement> placements) {
  std::string out;
  for (const Placement& p : placements) out += (out.empty() ? "" : ",") + p.to_string();
  return out;
}

Placement parse_placement(std::string_view text) {
  const std::string_view all = text::trimmed(text);
  const auto open = all.find('(');
  const std::string_view word = text::trimmed(all.substr(0, open));
  if (open == std::string_view::npos) {
    if (word == "R" || word == "Replicate") return Placement::replicate();
    if (word == "P" || word == "Partial") return Placement::partial();
    wrong(text);
  }
  if (all.back() != ')') wrong(text);
  const std::string_view inside = text::trimmed(all.substr(open + 1, all.size() - open - 2));
  if (word == "S" || word == "Shard") {
    const auto dim = text::number<int>(inside);
    if (!dim) wrong(text);
    return Placement::shard(*dim);
  }
  if (word == "P" || word == "Partial") {
    for (const auto& [name, op] : kOps) {
      if (name == inside) return Placement::partial(op);
    }
  }
  wrong(text);
}

Placements parse_placements(std::string_view text) {
  Placements out;
  for (std::size_t from = 0;;) {
    const auto comma = text.find(',', from);
    out.push_back(parse_placement(text.substr(from, comma - from)));
    if (comma == std::string_view::npos) return out;
    from = comma + 1;
  }
}

Placements normalized(std::span<const Placement> placements, std::size_t tensor_ndim) {
  Placements out(placements.begin(), placements.end());
  const auto n = static_cast<std::int64_t>(tensor_ndim);
  for (Placement& p : out) {
    if (!p.is_shard()) continue;
    if (p.dim() < -n || p.dim() >= n) {
      throw InvalidArgument(
          "placement " + p.to_string() + ": the tensor has " + text::count(n, "dimension") +
          (n == 0 ? std::string(", use R or P")
                  : ", use " + std::to_string(-n) + ".." + std::to_string(n - 1)));
    }
    if (p.dim() < 0) p = Placement::shard(static_cast<int>(p.dim() + n));
  }
  return out;
}

std::ostream& operator<<(std::ostream& out, const Placement& placement) {
  return out << placement.to_string();
}

}  // namespace meshstage
