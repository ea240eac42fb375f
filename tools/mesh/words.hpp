#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/mesh/layout.hpp>
#include <meshstage/mesh/mesh_file.hpp>

/// How the commands word things for people.
namespace meshstage::tools {

/// Ranks in the order given, runs joined: "0-3,8"; evenly spaced ones "0,4,..,60"; cut with "..."
/// to about `width` characters.
[[nodiscard]] std::string short_ranks(std::span<const int> ranks, std::size_t width = 40);
/// "1.5 GiB", "12 B".
[[nodiscard]] std::string bytes_words(double bytes);
/// "0.31 s", "12 ms".
[[nodiscard]] std::string seconds_words(double seconds);
/// "dp=2, tp=4".
[[nodiscard]] std::string dims_words(const DeviceMesh& mesh);
/// "half-shift, 1 copy", or "listed in the file".
[[nodiscard]] std::string partners_words(const MeshDescription& job);
/// "S(0),R": a layout's placements along the dimensions that TensorSpec::only does not name.
[[nodiscard]] Placements free_placements(const DeviceMesh& mesh, const TensorSpec& tensor,
                                         const Layout& layout);
/// ", at pp=1"; nothing of a tensor on the whole mesh.
[[nodiscard]] std::string only_words(const TensorSpec& tensor);
/// "2,4".
[[nodiscard]] std::string sizes_words(std::span<const std::int64_t> sizes);

/// A table with aligned columns: numbers to the right, text to the left.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  [[nodiscard]] std::string str() const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace meshstage::tools
