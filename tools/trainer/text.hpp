#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace trainer {

/// A text as class numbers: the distinct bytes of the file, ascending, are classes 0, 1, ...
class Text {
 public:
  /// Reads the whole file. Throws std::runtime_error if it cannot be read or has fewer than
  /// `shortest` bytes.
  static Text read(const std::filesystem::path& file, std::size_t shortest);
  /// From memory; the same rules.
  static Text of(const std::string& bytes);

  [[nodiscard]] std::size_t size() const { return classes_.size(); }
  /// Number of classes, 1..256.
  [[nodiscard]] std::size_t vocabulary() const { return bytes_.size(); }
  [[nodiscard]] const std::vector<std::uint8_t>& classes() const { return classes_; }
  /// The byte of a class.
  [[nodiscard]] char byte(std::size_t c) const { return static_cast<char>(bytes_.at(c)); }

 private:
  std::vector<std::uint8_t> bytes_;    // by class
  std::vector<std::uint8_t> classes_;  // by position
};

/// The text to train on when none is named: the licence installed beside the program
/// (`bin/../share/meshstage/LICENSE`), else the one of the source tree this was built from.
/// An empty path if neither is there.
std::filesystem::path default_text();

}  // namespace trainer
