#pragma once
#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

/// How the commands print.
namespace meshstage::tools {

/// "512 B", "1.5 KiB", "1.39 GiB".
std::string size_text(std::uint64_t bytes);
/// "1 tensor", "2 tensors".
std::string count_text(std::uint64_t count, std::string_view singular);

/// "1500000000", "1.5GB", "1.4 GiB", "64M" (M and MiB are 2^20, MB is 10^6), upper or lower case.
/// Throws InvalidArgument with the valid form.
std::uint64_t parse_size(std::string_view text);

/// The text without control characters (also those of terminals beyond ASCII) and without bytes
/// that are not UTF-8, cut after `max` bytes.
std::string printable(std::string_view text, std::size_t max = 200);

/// One JSON object and a newline; what is not UTF-8 is replaced.
void print_json(std::ostream& out, const nlohmann::ordered_json& json);

/// Rows printed in columns as wide as their widest cell.
class Columns {
 public:
  enum class Align : std::uint8_t { kLeft, kRight };
  /// The headings; an empty list of them prints none. Columns beyond are left-aligned.
  Columns(std::vector<std::string> headings, std::vector<Align> aligns);
  void add(std::vector<std::string> cells);
  void print(std::ostream& out) const;
  [[nodiscard]] bool empty() const noexcept { return rows_.empty(); }

 private:
  std::vector<std::string> headings_;
  std::vector<Align> aligns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace meshstage::tools
