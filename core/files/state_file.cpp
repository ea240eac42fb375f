#include <meshstage/core/files/state_file.hpp>

#include <algorithm>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/safetensors_dict.hpp>

namespace meshstage {

namespace {

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

}  // namespace

Value load_state_file(FileSystem& fs, const std::filesystem::path& path,
                      const NodeRegistry& registry) {
  const auto file = MappedFile::open(fs, path);
  if (is_image(SafetensorsIndex::parse(file->bytes()))) {
    return decode_image(file->bytes(), file, registry);
  }
  return decode_safetensors(file->bytes(), file);
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
