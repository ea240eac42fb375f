#include <filesystem>
#include <fstream>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/mesh_file.hpp>
#include <meshstage/mesh/text.hpp>

namespace meshstage {

std::string to_string(const MeshFileError& error) {
  std::string out;
  if (error.line > 0) {
    out = std::to_string(error.line) + ":" + std::to_string(error.column) + ": ";
  }
  if (!error.key.empty()) out += error.key + ": ";
  out += error.message;
  if (!error.fix.empty()) out += "; " + error.fix;
  return out;
}

std::vector<int> parse_ranks(std::string_view text, std::int64_t at_most) {
  const auto fail = [&](const std::string& why) {
    throw InvalidArgument("ranks " + text::quoted(text) + why +
                          ": write numbers and ranges, such as 0-3,8");
  };
  std::vector<int> out;
  for (std::size_t from = 0;;) {
    const auto comma = text.find(',', from);
    const std::string_view part = text::trimmed(text.substr(from, comma - from));
    const auto dash = part.find('-');
    const auto first = text::number<int>(text::trimmed(part.substr(0, dash)));
    const auto last = dash == std::string_view::npos
                          ? first
                          : text::number<int>(text::trimmed(part.substr(dash + 1)));
    if (!first || !last || *first < 0 || *last < *first) fail("");
    if (std::int64_t{*last} - *first + 1 > at_most - static_cast<std::int64_t>(out.size())) {
      fail(" are more than " + std::to_string(at_most));
    }
    for (std::int64_t r = *first; r <= *last; ++r) out.push_back(static_cast<int>(r));
    if (comma == std::string_view::npos) return out;
    from = comma + 1;
  }
}

std::string read_mesh_text(const std::string& path) {
  constexpr std::size_t kMostBytes = std::size_t{1} << 28;
  std::ifstream in(path, std::ios::binary);
  std::string content;
  std::vector<char> piece(std::size_t{1} << 16);
  // A directory opens, and fails at its first read with an end of file.
  const bool is_file = in.is_open() && !std::filesystem::is_directory(path);
  while (is_file &&
         in.read(piece.data(), static_cast<std::streamsize>(piece.size())).gcount() > 0) {
    content.append(piece.data(), static_cast<std::size_t>(in.gcount()));
    if (content.size() > kMostBytes) {
      throw InvalidArgument("mesh file " + text::quoted(path) + " has more than " +
                            std::to_string(kMostBytes >> 20) + " MiB: give a TOML file");
    }
  }
  if (!is_file || in.bad()) {
    throw make_error<NotFound>(
        "mesh file " + text::quoted(path) + " cannot be read: give a TOML file", {}, {}, path);
  }
  return content;
}

MeshDescription load_mesh_file(const std::string& path) {
  MeshFileResult result = parse_mesh_file(read_mesh_text(path));
  if (!result.description) {
    const auto more = result.errors.size() - 1;
    throw InvalidArgument(
        path + ":" + to_string(result.errors.front()) +
        (more > 0 ? " (and " + std::to_string(more) + " more: meshstage mesh check " + path + ")"
                  : ""));
  }
  return std::move(*result.description);
}

}  // namespace meshstage
