#include "tools/trainer/text.hpp"

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <system_error>

namespace trainer {

Text Text::of(const std::string& bytes) {
  std::array<bool, 256> seen{};
  for (const char c : bytes) seen.at(static_cast<std::uint8_t>(c)) = true;
  Text text;
  std::array<std::uint8_t, 256> class_of{};
  for (std::size_t b = 0; b < seen.size(); ++b) {
    if (!seen.at(b)) continue;
    class_of.at(b) = static_cast<std::uint8_t>(text.bytes_.size());
    text.bytes_.push_back(static_cast<std::uint8_t>(b));
  }
  text.classes_.reserve(bytes.size());
  for (const char c : bytes) text.classes_.push_back(class_of.at(static_cast<std::uint8_t>(c)));
  return text;
}

Text Text::read(const std::filesystem::path& file, std::size_t shortest) {
  std::ifstream in(file, std::ios::binary);
  std::error_code ignored;
  if (!in || std::filesystem::is_directory(file, ignored)) {
    throw std::runtime_error("the text " + file.string() +
                             " cannot be read: name a text file with --text FILE");
  }
  const std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (bytes.size() < shortest) {
    throw std::runtime_error("the text " + file.string() + " has " + std::to_string(bytes.size()) +
                             " bytes; training needs at least " + std::to_string(shortest));
  }
  return of(bytes);
}

std::filesystem::path default_text() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const auto installed = program.parent_path().parent_path() / "share/meshstage/LICENSE";
    if (std::filesystem::is_regular_file(installed, error)) return installed;
  }
  const std::filesystem::path built_from = TRAINER_DEFAULT_TEXT;
  return std::filesystem::is_regular_file(built_from, error) ? built_from : std::filesystem::path();
}

}  // namespace trainer
