// meshstage export: every path as a tensor of its own.
#include <fmt/format.h>

#include <filesystem>
#include <ostream>
#include <system_error>

#include <meshstage/core/files/state_file.hpp>

#include "tools/snapshot/entries.hpp"
#include "tools/snapshot/open.hpp"
#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

using Json = nlohmann::ordered_json;

/// How much of each name is `path` itself, and is left out.
std::size_t bytes_above(const Entry& first, const std::string& path, bool plain) {
  if (path.empty()) return 0;
  if (first.path == path || first.plain == path) {
    return plain ? first.plain.size() : first.path.size();
  }
  const auto& name = plain ? first.plain : first.path;
  return name.starts_with(path + ".") ? path.size() : 0;
}

/// The name without the first `cut` bytes and the dot after them.
std::string below(const std::string& name, std::size_t cut) {
  if (cut == 0) return name;
  return name.size() > cut + 1 ? name.substr(cut + 1) : name.substr(name.rfind('.') + 1);
}

/// What the file said of itself before, the values of an image, and "format": some loaders insist
/// on it.
std::vector<std::pair<std::string, std::string>> exported_metadata(const Snapshot& snapshot,
                                                                   const Json& values) {
  std::vector<std::pair<std::string, std::string>> metadata;
  bool has_format = false;
  if (!snapshot.image) {
    metadata = snapshot.metadata();
    has_format = snapshot.find_metadata("format").has_value();
  }
  if (!has_format) metadata.emplace_back("format", "pt");
  if (snapshot.image || !values.empty())
    metadata.emplace_back(kExportedValues, values_text(values));
  return metadata;
}

}  // namespace

int export_snapshot(const ExportOptions& options, std::ostream& out) {
  std::error_code error;
  const auto status = std::filesystem::status(options.output, error);
  if (std::filesystem::is_directory(status)) {
    throw InvalidArgument("\"" + printable(options.output.native()) +
                          "\" is a directory; give the file to write");
  }
  if (std::filesystem::exists(status) && !options.force) {
    throw InvalidArgument("\"" + printable(options.output.native()) +
                          "\" exists; --force replaces it");
  }
  const auto directory = options.output.parent_path();
  if (!directory.empty() && !std::filesystem::is_directory(directory, error)) {
    throw make_error<NotFound>("there is no directory \"" + printable(directory.native()) + "\"",
                               {}, {}, directory.native());
  }
  const auto snapshot = open_snapshot(options.snapshot, options.places, Content::kAll);
  auto entries = list_entries(snapshot, Repeat::kAlways);
  keep_below(entries, options.path);
  const bool plain = !snapshot.image || plain_names_do(entries);
  const std::size_t cut = bytes_above(entries.front(), options.path, plain);
  Dict tensors;
  auto values = Json::object();
  for (const auto& e : entries) {
    const auto name = below(plain ? e.plain : e.path, cut);
    if (e.is_tensor()) {
      tensors.set(name.empty() ? "tensor" : name, e.value);
    } else if (e.value.is_scalar()) {
      values.get_ref<Json::object_t&>().emplace_back(name, scalar_json(e.value));
    }
  }
  const auto metadata = exported_metadata(snapshot, values);
  save_safetensors(real_file_system(), options.output, tensors, metadata);
  const auto bytes = std::filesystem::file_size(options.output);
  const auto header = open_file(options.output).index.data_begin();
  if (options.json) {
    print_json(out, {{"output", options.output.native()},
                     {"tensors", tensors.size()},
                     {"bytes", bytes},
                     {"header_bytes", header},
                     {"escaped_names", !plain}});
    return 0;
  }
  out << fmt::format("{}: {}, {}\n", printable(options.output.native(), 1000),
                     count_text(tensors.size(), "tensor"), size_text(bytes));
  if (header > kMaxPythonHeaderBytes) {
    out << fmt::format("its header has {}: Python's safetensors refuses more than {}\n",
                       size_text(header), size_text(kMaxPythonHeaderBytes));
  }
  if (!plain) {
    out << "names are escaped as in `meshstage inspect`: keys joined by dots would not be unique\n";
  }
  return 0;
}

}  // namespace meshstage::tools
