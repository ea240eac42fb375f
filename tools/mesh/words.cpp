#include "tools/mesh/words.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace meshstage::tools {

std::string short_ranks(std::span<const int> ranks, std::size_t width) {
  if (ranks.empty()) return "-";
  if (ranks.size() > 3) {
    const int step = ranks[1] - ranks[0];
    bool even = step > 1;
    for (std::size_t i = 2; i < ranks.size() && even; ++i) even = ranks[i] - ranks[i - 1] == step;
    if (even) return fmt::format("{},{},..,{}", ranks[0], ranks[1], ranks.back());
  }
  std::string out;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    std::string run =
        end - i > 2 ? fmt::format("{}-{}", ranks[i], ranks[end - 1]) : fmt::format("{}", ranks[i]);
    if (end - i <= 2) end = i + 1;
    if (!out.empty() && out.size() + run.size() + 5 > width && end < ranks.size()) {
      return out + fmt::format(",.. ({})", ranks.size());
    }
    out += (out.empty() ? "" : ",") + run;
    i = end;
  }
  return out;
}

std::string bytes_words(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.4g} {}", bytes, kUnits[unit]);
}

std::string seconds_words(double seconds) {
  if (seconds >= 0.1) return fmt::format("{:.3g} s", seconds);
  if (seconds >= 1e-4) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.3g} us", seconds * 1e6);
}

std::string dims_words(const DeviceMesh& mesh) {
  std::string out;
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    out += fmt::format("{}{}={}", d > 0 ? ", " : "", mesh.names()[d], mesh.shape()[d]);
  }
  return out;
}

std::string partners_words(const MeshDescription& job) {
  if (job.explicit_holders) return "holders as listed in the file";
  return fmt::format("{}, {} {}", to_string(job.partners.policy), job.partners.copies,
                     job.partners.copies == 1 ? "copy" : "copies");
}

Placements free_placements(const DeviceMesh& mesh, const TensorSpec& tensor, const Layout& layout) {
  Placements out;
  for (std::size_t d = 0; d < mesh.ndim(); ++d) {
    const bool fixed = std::any_of(tensor.only.begin(), tensor.only.end(),
                                   [&](const auto& c) { return c.dim == mesh.names()[d]; });
    if (!fixed) out.push_back(layout.placements()[d]);
  }
  return out;
}

std::string only_words(const TensorSpec& tensor) {
  return tensor.only.empty() ? std::string() : ", at " + to_string(tensor.only);
}

std::string sizes_words(std::span<const std::int64_t> sizes) {
  return sizes.empty() ? "(no dimensions)" : fmt::format("{}", fmt::join(sizes, ","));
}

std::string Table::str() const {
  std::vector<std::size_t> width(header_.size());
  std::vector<bool> number(header_.size(), true);
  for (std::size_t c = 0; c < header_.size(); ++c) width[c] = header_[c].size();
  for (const auto& row : rows_) {
    for (std::size_t c = 0; c < row.size(); ++c) {
      width[c] = std::max(width[c], row[c].size());
      number[c] = number[c] && row[c].find_first_not_of("0123456789.") == std::string::npos;
    }
  }
  std::string out;
  const auto line = [&](const std::vector<std::string>& row) {
    std::string text = " ";
    for (std::size_t c = 0; c < row.size(); ++c) {
      text += number[c] ? fmt::format(" {:>{}} ", row[c], width[c])
                        : fmt::format(" {:<{}} ", row[c], width[c]);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  };
  line(header_);
  for (const auto& row : rows_) line(row);
  return out;
}

}  // namespace meshstage::tools
