#include <meshstage/core/os/file_system.hpp>

#include <cerrno>
#include <system_error>

namespace meshstage {

namespace {

std::string describe(std::string_view call, std::string_view path, int error_number) {
  std::string message(call);
  if (!path.empty()) message.append(" ").append(path);
  return message + ": " + std::generic_category().message(error_number) + " (errno " +
         std::to_string(error_number) + ")";
}

}  // namespace

SystemError::SystemError(std::string_view call, std::string_view path, int error_number)
    : IoError(describe(call, path, error_number)), error_number_(error_number) {
  with_path(std::string(path));
}

bool File::reserve_huge(std::uint64_t, std::uint64_t) noexcept { return false; }

void write_fully(File& file, std::span<const std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const std::size_t n = file.write_at(bytes, offset);
    bytes = bytes.subspan(n);
    offset += n;
  }
}

std::optional<std::string> read_text(FileSystem& fs, const std::filesystem::path& path,
                                     std::size_t max_bytes) {
  std::unique_ptr<File> file;
  try {
    file = fs.open(path, OpenMode::kRead);
  } catch (const SystemError& e) {
    if (e.error_number() == ENOENT || e.error_number() == ENOTDIR) return std::nullopt;
    throw;
  }
  constexpr std::size_t kStep = 4096;
  std::string text;
  while (true) {
    const std::size_t had = text.size();
    text.resize(had + kStep);
    const auto room = std::as_writable_bytes(std::span(text).subspan(had));
    std::size_t n = 0;
    try {
      n = file->read_at(room, had);
    } catch (const SystemError& e) {
      if (e.error_number() == ESRCH) return std::nullopt;
      throw;
    }
    text.resize(had + n);
    if (text.size() > max_bytes) throw SystemError("read", path.native(), EFBIG);
    if (n == 0) return text;
  }
}

}  // namespace meshstage
