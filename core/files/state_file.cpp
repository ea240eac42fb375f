#include <meshstage/core/files/state_file.hpp>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/quoted.hpp>
#include <meshstage/core/image/safetensors_dict.hpp>

namespace meshstage {

namespace {

using detail::in_quotes;

constexpr std::uint64_t kCopyBytes = std::uint64_t{64} << 20U;

/// Writes the elements row-major from `offset`, and moves it behind them. A view may have far more
/// elements than its storage (stride 0), so they are gathered in parts.
void write_elements(File& file, const Tensor& tensor, std::uint64_t& offset) {
  if (tensor.numel() == 0) return;
  if (tensor.is_contiguous() || tensor.nbytes() <= kCopyBytes) {
    const Tensor plain = tensor.contiguous();
    write_fully(file, {plain.first_byte(), plain.nbytes()}, offset);
    offset += plain.nbytes();
    return;
  }
  const auto rows = tensor.size(0);
  const std::uint64_t row_bytes = tensor.nbytes() / static_cast<std::uint64_t>(rows);
  if (row_bytes > kCopyBytes) {
    for (std::int64_t i = 0; i < rows; ++i) write_elements(file, tensor.select(0, i), offset);
    return;
  }
  const auto at_once = static_cast<std::int64_t>(kCopyBytes / row_bytes);
  for (std::int64_t i = 0; i < rows; i += at_once) {
    write_elements(file, tensor.narrow(0, i, std::min(at_once, rows - i)), offset);
  }
}

/// Text of JSON, not a header: what stands where a header's length would is beyond any length.
bool is_json(std::span<const std::byte> bytes) {
  const auto first = std::find_if(bytes.begin(), bytes.end(), [](std::byte b) {
    return std::string_view(" \t\r\n").find(static_cast<char>(b)) == std::string_view::npos;
  });
  if (first == bytes.end() || *first != std::byte{'{'}) return false;
  return bytes.size() < sizeof(std::uint64_t) ||
         little_endian::load<std::uint64_t>(bytes.data()) > kMaxHeaderBytes;
}

/// The tensors that each file is said to have.
using ShardNames = std::map<std::string, std::set<std::string>>;

ShardNames parse_index(std::span<const std::byte> bytes, const std::filesystem::path& path) {
  const auto refuse = [&](const std::string& what) {
    return make_error<CorruptData>("the index " + path.native() + ": " + what, {}, {},
                                   path.native());
  };
  if (bytes.size() > kMaxHeaderBytes) throw refuse("is larger than any header may be");
  if (std::memchr(bytes.data(), 0, bytes.size()) != nullptr) throw refuse("has a byte of 0");
  constexpr int kMaxDepth = 16;
  std::string member;
  std::set<std::string> members, names;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    if (depth > kMaxDepth) throw refuse("is nested too deeply");
    if (event != nlohmann::json::parse_event_t::key) return true;
    const auto& key = parsed.get_ref<const std::string&>();
    if (depth == 1) {
      member = key;
      if (!members.insert(key).second) throw refuse(in_quotes(key) + " comes twice");
    } else if (depth == 2 && member == "weight_map" && !names.insert(key).second) {
      throw refuse("tensor " + in_quotes(key) + " comes twice");
    }
    return true;
  };
  nlohmann::json index;
  try {
    const auto* const text = reinterpret_cast<const char*>(bytes.data());
    index = nlohmann::json::parse(text, text + bytes.size(), watch);
  } catch (const nlohmann::json::exception& e) {
    throw refuse(std::string("is no JSON: ") + e.what());
  }
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object())
    throw refuse("is JSON, but has no \"weight_map\" that says which file has which tensor");
  ShardNames shards;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string()) throw refuse("tensor " + in_quotes(name) + " is in no file");
    const auto& shard = file.get_ref<const std::string&>();
    // A name beside the index, nothing else: no folder, no way up.
    if (shard.empty() || shard == "." || shard == ".." || shard.size() > 255 ||
        shard.find('/') != std::string::npos || shard.find('\0') != std::string::npos) {
      throw refuse("tensor " + in_quotes(name) + " is in " + in_quotes(shard) +
                   ", which is no name of a file beside the index");
    }
    shards[shard].insert(name);
  }
  return shards;
}

Dict load_shards(FileSystem& fs, const std::filesystem::path& path, const ShardNames& shards) {
  Dict all;
  for (const auto& [shard, names] : shards) {
    const auto file = MappedFile::open(fs, path.parent_path() / shard);
    const auto refuse = [&, &file_name = shard](const std::string& tensor,
                                                const std::string& what) {
      return make_error<CorruptData>("the index " + path.native() + ": tensor " +
                                         in_quotes(tensor) + " " + what + " " +
                                         in_quotes(file_name),
                                     {}, {}, tensor);
    };
    const auto tensors = decode_safetensors(file->bytes(), file);
    for (const auto& name : names) {
      if (!tensors.contains(name)) throw refuse(name, "is not in");
    }
    for (const auto& [name, tensor] : tensors) {
      if (!names.contains(name.string())) throw refuse(name.string(), "is not listed for");
      all.set(name, tensor);
    }
  }
  return all;
}

}  // namespace

Value load_state_file(FileSystem& fs, const std::filesystem::path& path,
                      const NodeRegistry& registry) {
  const auto file = MappedFile::open(fs, path);
  if (is_json(file->bytes())) return load_shards(fs, path, parse_index(file->bytes(), path));
  if (is_image(SafetensorsIndex::parse(file->bytes()))) {
    return decode_image(file->bytes(), file, registry);
  }
  return decode_safetensors(file->bytes(), file);
}

std::vector<std::filesystem::path> files_of_state(FileSystem& fs,
                                                  const std::filesystem::path& path) {
  const auto file = MappedFile::open(fs, path);
  if (!is_json(file->bytes())) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& [shard, names] : parse_index(file->bytes(), path)) {
    files.push_back(path.parent_path() / shard);
  }
  return files;
}

void save_safetensors(FileSystem& fs, const std::filesystem::path& path, const Dict& tensors,
                      const std::vector<std::pair<std::string, std::string>>& metadata) {
  const auto plan = plan_safetensors(tensors, metadata);
  const auto directory = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const auto space = fs.free_space(directory);
  if (plan.file_bytes > space.available) {
    throw make_error<OutOfMemory>(path.native() + " needs " + std::to_string(plan.file_bytes) +
                                      " bytes, the file system of its directory has " +
                                      std::to_string(space.available) +
                                      "; make room there or write elsewhere",
                                  {}, {}, path.native());
  }
  publish_atomically(fs, path, [&plan](File& file) {
    write_fully(file, plan.header, 0);
    std::uint64_t offset = plan.header.size();
    for (const auto& tensor : plan.tensors) write_elements(file, tensor, offset);
  });
}

}  // namespace meshstage
