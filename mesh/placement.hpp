#pragma once
#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

using collectives::ReduceOp;

/// How a tensor is placed along one dimension of a mesh, as in PyTorch's DTensor.
class MESHSTAGE_API Placement {
 public:
  enum class Kind : std::uint8_t { kReplicate, kShard, kPartial };

  /// Replicate.
  Placement() noexcept = default;
  /// Every rank has the whole tensor.
  [[nodiscard]] static Placement replicate() noexcept { return {}; }
  /// The tensor is cut along the tensor dimension `dim`; a negative one counts from the end.
  [[nodiscard]] static Placement shard(int dim) noexcept { return {Kind::kShard, dim, {}}; }
  /// Every rank has a contribution; the reduction of all contributions is the tensor.
  [[nodiscard]] static Placement partial(ReduceOp op = ReduceOp::kSum) noexcept {
    return {Kind::kPartial, 0, op};
  }

  [[nodiscard]] Kind kind() const noexcept { return kind_; }
  [[nodiscard]] bool is_replicate() const noexcept { return kind_ == Kind::kReplicate; }
  [[nodiscard]] bool is_shard() const noexcept { return kind_ == Kind::kShard; }
  [[nodiscard]] bool is_shard(int dim) const noexcept { return is_shard() && dim_ == dim; }
  [[nodiscard]] bool is_partial() const noexcept { return kind_ == Kind::kPartial; }
  /// The dimension of a shard, as given (perhaps negative); otherwise 0.
  [[nodiscard]] int dim() const noexcept { return dim_; }
  /// The reduction of a partial; otherwise kSum.
  [[nodiscard]] ReduceOp op() const noexcept { return op_; }

  /// "R", "S(0)", "P(sum)".
  [[nodiscard]] std::string to_string() const;

  friend bool operator==(const Placement&, const Placement&) noexcept = default;

 private:
  Placement(Kind kind, int dim, ReduceOp op) noexcept : kind_(kind), dim_(dim), op_(op) {}
  Kind kind_ = Kind::kReplicate;
  int dim_ = 0;
  ReduceOp op_ = ReduceOp::kSum;
};

using Placements = std::vector<Placement>;

/// Reads one placement: "R" or "Replicate", "S(d)" or "Shard(d)", "P", "P(op)" or "Partial(op)"
/// with op sum, avg, product, min or max; spaces around the parts are allowed. Throws
/// InvalidArgument; the message shows the valid forms.
[[nodiscard]] MESHSTAGE_API Placement parse_placement(std::string_view text);
/// Reads several placements with commas between: "S(0),R".
[[nodiscard]] MESHSTAGE_API Placements parse_placements(std::string_view text);
/// "S(0),R".
[[nodiscard]] MESHSTAGE_API std::string to_string(std::span<const Placement> placements);
/// "sum", "avg", "product", "min", "max".
[[nodiscard]] MESHSTAGE_API std::string_view to_string(ReduceOp op) noexcept;

/// The same placements with every shard dimension in 0..tensor_ndim-1. Throws InvalidArgument for a
/// dimension out of range.
[[nodiscard]] MESHSTAGE_API Placements normalized(std::span<const Placement> placements,
                                                  std::size_t tensor_ndim);

MESHSTAGE_API std::ostream& operator<<(std::ostream& out, const Placement& placement);

}  // namespace meshstage
