#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <meshstage/mesh/device_mesh.hpp>
#include <meshstage/mesh/layout.hpp>

namespace meshstage::tools {

/// Calls visit(rank, coordinate) for all ranks of a mesh, in rank order.
template <class F>
void by_rank(const DeviceMesh& mesh, F&& visit) {
  std::vector<int> ranks = mesh.ranks();
  std::sort(ranks.begin(), ranks.end());
  std::vector<std::int64_t> coordinate(mesh.ndim());
  for (const int rank : ranks) {
    std::int64_t index = *mesh.index_of(rank);
    for (std::size_t d = mesh.ndim(); d-- > 0;) {
      coordinate[d] = index % mesh.shape()[d];
      index /= mesh.shape()[d];
    }
    visit(rank, coordinate);
  }
}

/// The blocks into which a layout cuts a tensor, as a picture needs them: at least two dimensions
/// (leading ones of size 1 are added), of which the last two are rows and columns and those before
/// number the slices.
class Blocks {
 public:
  Blocks(const DeviceMesh& mesh, const Layout& layout);

  [[nodiscard]] std::size_t columns() const { return cuts_.back().size(); }
  [[nodiscard]] std::size_t rows() const { return cuts_[cuts_.size() - 2].size(); }
  [[nodiscard]] std::size_t slices() const { return slices_; }
  /// "7:13": the elements of a column or row; the first and one past the last of it.
  [[nodiscard]] std::string column_label(std::size_t column) const;
  [[nodiscard]] std::string row_label(std::size_t row) const;
  [[nodiscard]] std::pair<std::int64_t, std::int64_t> column(std::size_t column) const;
  [[nodiscard]] std::pair<std::int64_t, std::int64_t> row(std::size_t row) const;
  /// "0:7,:,:"; empty for a tensor of at most two dimensions.
  [[nodiscard]] std::string slice_label(std::size_t slice) const;

  struct Place {
    std::size_t slice = 0, row = 0, column = 0;
    friend bool operator==(const Place&, const Place&) = default;
  };
  /// Of a shard that has elements.
  [[nodiscard]] Place place(const LocalShard& shard) const;

  /// ranks()[slice][row][column] of the first so many of each.
  using Ranks = std::vector<std::vector<std::vector<std::vector<int>>>>;
  [[nodiscard]] Ranks ranks(std::size_t slices, std::size_t rows, std::size_t columns) const;

  /// Ranks that have no elements, and the fewest and most elements that a rank has.
  [[nodiscard]] const std::vector<int>& without() const { return without_; }
  [[nodiscard]] std::int64_t least() const { return least_; }
  [[nodiscard]] std::int64_t most() const { return most_; }

 private:
  const DeviceMesh& mesh_;
  const Layout& layout_;
  std::size_t added_;                            // dimensions of size 1 before the tensor's
  std::vector<std::int64_t> sizes_;              // with those
  std::vector<std::vector<std::int64_t>> cuts_;  // of each dimension: first index of each piece
  std::size_t slices_ = 1;
  std::vector<int> without_;
  std::int64_t least_ = 0;
  std::int64_t most_ = 0;
};

}  // namespace meshstage::tools
