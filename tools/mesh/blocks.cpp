#include "tools/mesh/blocks.hpp"

#include <limits>

namespace meshstage::tools {
namespace {

std::string interval(std::pair<std::int64_t, std::int64_t> piece) {
  return std::to_string(piece.first) + ":" + std::to_string(piece.second);
}

std::pair<std::int64_t, std::int64_t> piece(const std::vector<std::int64_t>& cuts, std::size_t i,
                                            std::int64_t size) {
  return {cuts[i], i + 1 < cuts.size() ? cuts[i + 1] : size};
}

}  // namespace

Blocks::Blocks(const DeviceMesh& mesh, const Layout& layout)
    : mesh_(mesh),
      layout_(layout),
      added_(layout.tensor_shape().size() < 2 ? 2 - layout.tensor_shape().size() : 0),
      sizes_(added_, 1),
      cuts_(added_, {0}) {
  const auto& tensor = layout.tensor_shape();
  sizes_.insert(sizes_.end(), tensor.begin(), tensor.end());
  cuts_.resize(sizes_.size());
  least_ = std::numeric_limits<std::int64_t>::max();
  LocalShard shard;
  by_rank(mesh, [&](int rank, const std::vector<std::int64_t>& coordinate) {
    layout.at(coordinate, shard);
    least_ = std::min(least_, shard.numel());
    most_ = std::max(most_, shard.numel());
    if (shard.empty()) {
      without_.push_back(rank);
      return;
    }
    for (std::size_t t = 0; t < tensor.size(); ++t) {
      auto& cuts = cuts_[added_ + t];
      if (cuts.empty() || cuts.back() != shard.offset[t]) cuts.push_back(shard.offset[t]);
    }
  });
  for (auto& cuts : cuts_) {
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  }
  for (std::size_t t = 0; t + 2 < cuts_.size(); ++t) slices_ *= cuts_[t].size();
}

std::pair<std::int64_t, std::int64_t> Blocks::column(std::size_t column) const {
  return piece(cuts_.back(), column, sizes_.back());
}
std::pair<std::int64_t, std::int64_t> Blocks::row(std::size_t row) const {
  return piece(cuts_[cuts_.size() - 2], row, sizes_[sizes_.size() - 2]);
}
std::string Blocks::column_label(std::size_t c) const {
  return added_ == 2 ? "" : interval(column(c));
}
std::string Blocks::row_label(std::size_t r) const { return added_ > 0 ? "" : interval(row(r)); }

std::string Blocks::slice_label(std::size_t slice) const {
  if (cuts_.size() == 2) return {};
  std::string out = ":,:";
  for (std::size_t t = cuts_.size() - 2; t-- > 0;) {
    out = interval(piece(cuts_[t], slice % cuts_[t].size(), sizes_[t])) + "," + out;
    slice /= cuts_[t].size();
  }
  return out;
}

Blocks::Place Blocks::place(const LocalShard& shard) const {
  Place out;
  for (std::size_t t = added_; t < cuts_.size(); ++t) {
    const auto& cuts = cuts_[t];
    const auto at = static_cast<std::size_t>(
        std::lower_bound(cuts.begin(), cuts.end(), shard.offset[t - added_]) - cuts.begin());
    if (t + 2 < cuts_.size()) {
      out.slice = out.slice * cuts.size() + at;
    } else {
      (t + 2 == cuts_.size() ? out.row : out.column) = at;
    }
  }
  return out;
}

Blocks::Ranks Blocks::ranks(std::size_t slices, std::size_t rows, std::size_t columns) const {
  Ranks out(slices, std::vector(rows, std::vector(columns, std::vector<int>())));
  LocalShard shard;
  by_rank(mesh_, [&](int rank, const std::vector<std::int64_t>& coordinate) {
    layout_.at(coordinate, shard);
    if (shard.empty()) return;
    const Place at = place(shard);
    if (at.slice < slices && at.row < rows && at.column < columns) {
      out[at.slice][at.row][at.column].push_back(rank);
    }
  });
  return out;
}

}  // namespace meshstage::tools
