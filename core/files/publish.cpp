// How a file is published, and why in this order.
//
// 1. The bytes go to a temporary name in the same directory (a rename cannot cross file systems),
// created
//    exclusively, so that two writers never share one.
// 2. fsync of the file: without it a file system may make the name durable before the bytes, and
// power loss
//    leaves an empty or half-written file under the final name.
// 3. rename: atomic for whoever looks; a reader has either the old file open or the new one.
// 4. fsync of the directory: without it power loss may bring the old name back, after we said it
// was done
//    and, say, an older file was pruned because of that.
// A death or power loss before 3 leaves the old file and a temporary one; after 3 the new file
// whole, or the old one if the directory was not durable yet. No order of failures leaves a mixture
// under the final name.
//
// A temporary file says whose it is by a record lock that its writer holds: the kernel releases it
// at the writer's death, so remove_leftovers() needs neither clocks nor process ids, and it works
// for directories that several hosts share. Locks of this very process it cannot see, so those
// files it knows by name.
#include <meshstage/core/files/publish.hpp>

#include <meshstage/core/files/temporary_impl.hpp>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <string>
#include <string_view>

namespace meshstage {

namespace detail {

std::string own_mark(const ProcessIdentity& process) {
  return std::string(kTemporaryMark) + std::to_string(process.pid) + "-" +
         std::to_string(process.instance) + "-";
}

std::unique_ptr<File> create_locked(FileSystem& fs, const std::filesystem::path& temporary) {
  constexpr int kRounds = 100;
  for (int round = 0; round < kRounds; ++round) {
    fs.unlink(
        temporary);  // the round before; or left by this thread, if it could not remove it then
    auto file = fs.open(temporary, OpenMode::kCreateExclusive);
    if (!file->try_lock()) continue;
    const auto named = fs.stat(temporary);
    if (named && named->inode == file->stat().inode) return file;
  }
  throw SystemError("fcntl F_SETLK", temporary.native(), EAGAIN);
}

}  // namespace detail

namespace {

void write_and_rename(FileSystem& fs, const std::filesystem::path& temporary,
                      const std::filesystem::path& target,
                      const std::function<void(File&)>& write) {
  const auto file = detail::create_locked(fs, temporary);
  write(*file);
  file->sync();
  fs.rename(temporary, target);
}

}  // namespace

void publish_atomically(FileSystem& fs, const std::filesystem::path& target,
                        const std::function<void(File&)>& write) {
  const auto directory =
      target.has_parent_path() ? target.parent_path() : std::filesystem::path(".");
  // One for each thread: two may publish the same target, and the later rename wins.
  const auto temporary = directory / ("." + target.filename().native() +
                                      detail::own_mark(fs.process()) + std::to_string(::gettid()));
  try {
    write_and_rename(fs, temporary, target, write);
  } catch (...) {  // passed on: `write` may throw anything
    try {
      fs.unlink(temporary);
    } catch (const SystemError&) {
      // The first error is the one to report; what is left is found by remove_leftovers().
    }
    throw;
  }
  fs.sync_directory(directory);
}

void publish_atomically(FileSystem& fs, const std::filesystem::path& target,
                        std::span<const std::span<const std::byte>> pieces) {
  publish_atomically(fs, target, [pieces](File& file) {
    std::uint64_t offset = 0;
    for (const auto piece : pieces) {
      write_fully(file, piece, offset);
      offset += piece.size();
    }
  });
}

void publish_atomically(FileSystem& fs, const std::filesystem::path& target,
                        std::span<const std::byte> bytes) {
  publish_atomically(fs, target, std::span(&bytes, 1));
}

std::size_t remove_leftovers(FileSystem& fs, const std::filesystem::path& directory) {
  if (!fs.stat(directory)) return 0;
  const std::string own = detail::own_mark(fs.process());
  std::size_t removed = 0;
  for (const auto& name : fs.list(directory)) {
    if (name.front() != '.' || name.find(detail::kTemporaryMark) == std::string::npos) continue;
    if (name.find(own) != std::string::npos) continue;
    const auto path = directory / name;
    try {
      const auto file = fs.open(path, OpenMode::kReadWrite);
      if (file->try_lock() && fs.unlink(path)) ++removed;
    } catch (const SystemError& e) {
      // Gone already (removed, or renamed to its target), another user's, or no file of ours at
      // all.
      constexpr std::array<int, 5> kNotOurs{ENOENT, EACCES, EISDIR, ENXIO, ELOOP};
      if (std::find(kNotOurs.begin(), kNotOurs.end(), e.error_number()) == kNotOurs.end()) throw;
    }
  }
  return removed;
}

}  // namespace meshstage
