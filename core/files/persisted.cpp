#include <meshstage/core/files/persisted.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/generation/number.hpp>
#include <meshstage/core/memory/mapping.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <set>
#include <tuple>
#include <utility>

namespace meshstage {

namespace {

constexpr std::string_view kExtension = ".safetensors";
constexpr std::string_view kOwn = ".own";
constexpr std::string_view kHeldBy = ".held-by-";
constexpr std::size_t kGenerationDigits = 6;
constexpr std::size_t kStepDigits = 12;
constexpr std::size_t kRankDigits = 5;

std::string padded(std::uint64_t number, std::size_t digits) {
  std::string text = std::to_string(number);
  if (text.size() < digits) text.insert(0, digits - text.size(), '0');
  return text;
}

std::string padded_rank(int rank) { return padded(static_cast<std::uint64_t>(rank), kRankDigits); }

bool take_suffix(std::string_view& text, std::string_view suffix) {
  if (text.size() < suffix.size() || text.substr(text.size() - suffix.size()) != suffix)
    return false;
  text.remove_suffix(suffix.size());
  return true;
}

/// Takes `mark` and the digits behind it off the end.
template <class T>
bool take_number(std::string_view& text, std::string_view mark, T& value) {
  const std::size_t at = text.find_last_not_of("0123456789");
  if (at == std::string_view::npos || at + 1 == text.size()) return false;
  const char* const end = text.data() + text.size();
  if (std::from_chars(text.data() + at + 1, end, value).ec != std::errc()) return false;
  text = text.substr(0, at + 1);
  return take_suffix(text, mark);
}

/// Sorts by age, then whose it is, own images before replicas.
auto sort_key(const PersistedName& n) {
  return std::tuple(n.job, n.id, n.rank, n.holder.value_or(-1), n.world_size);
}

/// Why others may have written what this is the stat of; nothing if they cannot.
std::optional<std::string> why_not_own(const FileStat& stat, std::uint32_t uid) {
  constexpr std::uint32_t kOthersWrite = 022;
  if (stat.uid != uid) {
    return "it belongs to user " + std::to_string(stat.uid) + ", not to user " +
           std::to_string(uid);
  }
  if ((stat.mode & kOthersWrite) != 0) return "it can be written by others";
  return std::nullopt;
}

std::unique_ptr<File> open_existing(FileSystem& fs, const std::filesystem::path& path,
                                    OpenMode mode) {
  try {
    return fs.open(path, mode);
  } catch (const SystemError& e) {
    if (e.error_number() != ENOENT && e.error_number() != ENOTDIR) throw;
    throw make_error<NotFound>("there is no file " + path.native(), {}, {}, path.native());
  }
}

std::unique_ptr<File> open_own_file(FileSystem& fs, const std::filesystem::path& path) {
  auto file = open_existing(fs, path, OpenMode::kReadUnlinked);
  if (const auto why = why_not_own(file->stat(), fs.process().uid)) {
    throw make_error<InvalidState>(path.native() + ": " + *why, {}, {}, path.native());
  }
  return file;
}

/// The images of a job by their names alone, sorted.
std::vector<PersistedImage> parse_names(FileSystem& fs, const std::filesystem::path& directory,
                                        std::string_view job) {
  std::vector<PersistedImage> images;
  for (const auto& file : fs.list(directory)) {
    auto name = parse_file_name(file);
    if (!name || (!job.empty() && name->job != job)) continue;
    images.push_back({std::move(*name), directory / file, 0});
  }
  std::sort(images.begin(), images.end(),
            [](const auto& a, const auto& b) { return sort_key(a.name) < sort_key(b.name); });
  return images;
}

std::string passed_over(const std::filesystem::path& path, const std::string& why) {
  return "ignoring " + path.native() + ": " + why;
}

std::optional<std::string> absolute(const EnvironmentLookup& lookup, const char* name) {
  auto value = lookup(name);
  if (value && !value->empty() && value->front() == '/') return value;
  return std::nullopt;
}

}  // namespace

void check_holds(const PersistedName& name, const ImageIdentity& held) {
  if (held.job == name.job && held.rank == name.rank && held.id == name.id &&
      held.world_size == name.world_size) {
    return;
  }
  throw CorruptData("it holds " + to_string(held));
}

std::string to_file_name(const PersistedName& n) {
  const bool good =
      is_valid_job_name(n.job) && n.id.exists() && n.rank >= 0 && n.rank < n.world_size &&
      (!n.holder || (*n.holder >= 0 && *n.holder < n.world_size && *n.holder != n.rank));
  if (!good) {
    throw InvalidArgument("no file can be named after job \"" + n.job + "\", " + to_string(n.id) +
                          ", rank " + std::to_string(n.rank) + " of " +
                          std::to_string(n.world_size) +
                          (n.holder ? ", held by " + std::to_string(*n.holder) : ""));
  }
  std::string name = n.job + ".g" + padded(n.id.generation, kGenerationDigits) + ".s" +
                     padded(n.id.step, kStepDigits) + ".r" + padded_rank(n.rank) + "of" +
                     padded_rank(n.world_size);
  name += n.holder ? std::string(kHeldBy) + padded_rank(*n.holder) : std::string(kOwn);
  return name + std::string(kExtension);
}

std::optional<PersistedName> parse_file_name(std::string_view file_name) {
  std::string_view rest = file_name;
  PersistedName n;
  if (!take_suffix(rest, kExtension)) return std::nullopt;
  if (!take_suffix(rest, kOwn)) {
    int holder = 0;
    if (!take_number(rest, kHeldBy, holder)) return std::nullopt;
    n.holder = holder;
  }
  if (!take_number(rest, "of", n.world_size) || !take_number(rest, ".r", n.rank) ||
      !take_number(rest, ".s", n.id.step) || !take_number(rest, ".g", n.id.generation)) {
    return std::nullopt;
  }
  n.job = rest;
  try {
    if (to_file_name(n) != file_name) return std::nullopt;
  } catch (const InvalidArgument&) {
    return std::nullopt;
  }
  return n;
}

std::vector<PersistedImage> list_images(FileSystem& fs, const std::filesystem::path& directory,
                                        std::string_view job) {
  std::vector<PersistedImage> images;
  if (!fs.stat(directory)) return images;
  for (auto& image : parse_names(fs, directory, job)) {
    const auto stat = fs.stat(image.path);
    if (!stat || stat->is_directory) continue;
    image.bytes = stat->size;
    images.push_back(std::move(image));
  }
  return images;
}

std::vector<PersistedImage> list_names(FileSystem& fs, const std::filesystem::path& directory,
                                       std::string_view job,
                                       const std::function<void(const std::string&)>& complain) {
  const auto stat = fs.stat(directory);
  if (!stat) return {};
  if (const auto why = why_not_own(*stat, fs.process().uid)) {
    if (complain) complain(passed_over(directory, *why));
    return {};
  }
  auto images = parse_names(fs, directory, job);
  std::erase_if(images, [&](const PersistedImage& image) {
    if (image.name.id.generation < kLastGeneration) return false;
    if (complain) {
      complain(passed_over(image.path, "no job reaches generation " +
                                           std::to_string(image.name.id.generation) +
                                           "; remove the file"));
    }
    return true;
  });
  return images;
}

std::optional<PersistedImage> newest_own_image(FileSystem& fs, std::vector<PersistedImage> listed) {
  for (auto image = listed.rbegin(); image != listed.rend(); ++image) {
    try {
      image->bytes = open_own_file(fs, image->path)->stat().size;
      return std::move(*image);
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch): whoever reads it says why
    }
  }
  return std::nullopt;
}

std::vector<PersistedImage> list_own_images(
    FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
    const std::function<void(const std::string&)>& complain) {
  std::vector<PersistedImage> images;
  for (auto& image : list_names(fs, directory, job, complain)) {
    try {
      image.bytes = open_own_file(fs, image.path)->stat().size;
      images.push_back(std::move(image));
    } catch (const Error& e) {
      const auto there = fs.stat(image.path);
      const bool directory_by_name = there && there->is_directory;  // no image at all
      if (complain && !directory_by_name) complain(passed_over(image.path, e.what()));
    }
  }
  return images;
}

std::size_t prune(FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
                  const std::function<bool(int writer)>& removes, ImageId persisted_everywhere,
                  std::size_t keep) {
  if (!persisted_everywhere.exists()) return 0;
  std::vector<PersistedImage> older;
  std::set<ImageId> ids;
  for (auto& image : list_images(fs, directory, job)) {
    if (image.name.job != job || !removes(image.name.writer()) ||
        !(image.name.id < persisted_everywhere))
      continue;
    ids.insert(image.name.id);
    older.push_back(std::move(image));
  }
  while (keep != 0 && !ids.empty()) {
    ids.erase(std::prev(ids.end()));
    --keep;
  }
  std::size_t removed = 0;
  for (const auto& image :
       older) {  // oldest first: what is left of an interrupted pruning is the newest
    if (ids.count(image.name.id) != 0 && fs.unlink(image.path)) ++removed;
  }
  remove_leftovers(fs, directory);
  return removed;
}

struct MappedFile::State {
  std::filesystem::path path;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> keep;
};

MappedFile::MappedFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
MappedFile::~MappedFile() = default;

std::shared_ptr<const MappedFile> MappedFile::open(FileSystem& fs,
                                                   const std::filesystem::path& path) {
  return map(*open_existing(fs, path, OpenMode::kRead), path);
}

std::shared_ptr<const MappedFile> MappedFile::open_own(FileSystem& fs,
                                                       const std::filesystem::path& path) {
  return map(*open_own_file(fs, path), path);
}

std::shared_ptr<const MappedFile> MappedFile::map(File& file, const std::filesystem::path& path) {
  const std::uint64_t size = file.stat().size;
  if (size == 0) throw make_error<CorruptData>(path.native() + " is empty", {}, {}, path.native());
  const auto mapping = std::make_shared<const Mapping>(file, size, MapAccess::kRead, true);
  return part_of(path, mapping->bytes(), mapping);
}

std::shared_ptr<const MappedFile> MappedFile::part_of(std::filesystem::path path,
                                                      std::span<const std::byte> bytes,
                                                      std::shared_ptr<const void> keep) {
  auto state = std::make_unique<State>(State{std::move(path), bytes, std::move(keep)});
  return std::shared_ptr<const MappedFile>(new MappedFile(std::move(state)));
}

std::span<const std::byte> MappedFile::bytes() const noexcept { return state_->bytes; }
const std::filesystem::path& MappedFile::path() const noexcept { return state_->path; }

std::filesystem::path default_directory(std::string_view job, std::uint32_t uid,
                                        const EnvironmentLookup& lookup) {
  if (!is_valid_job_name(job)) {
    throw InvalidArgument("job name \"" + std::string(job.substr(0, 80)) +
                          "\": 1 to 64 of A-Z a-z 0-9 . _ - are valid, but not \".\" or \"..\"");
  }
  std::filesystem::path base;
  if (const auto state = absolute(lookup, "XDG_STATE_HOME")) {
    base = std::filesystem::path(*state) / "meshstage";
  } else if (const auto home = absolute(lookup, "HOME")) {
    base = std::filesystem::path(*home) / ".local" / "state" / "meshstage";
  } else {
    base = "/var/tmp/meshstage-" + std::to_string(uid);
  }
  return base / job;
}

std::filesystem::path default_directory(std::string_view job) {
  return default_directory(job, real_file_system().process().uid,
                           [](const char* name) -> std::optional<std::string> {
                             const char* const value = std::getenv(name);
                             if (value == nullptr) return std::nullopt;
                             return value;
                           });
}

void make_private_directory(FileSystem& fs, const std::filesystem::path& directory) {
  if (!fs.stat(directory)) fs.make_directories(directory);
  const auto stat = fs.stat(directory);
  const std::uint32_t uid = fs.process().uid;
  constexpr std::uint32_t kOthersWrite = 022;
  if (!stat || !stat->is_directory) {
    throw make_error<InvalidState>(directory.native() + " is not a directory", {}, {},
                                   directory.native());
  }
  if (stat->uid != uid || (stat->mode & kOthersWrite) != 0) {
    throw make_error<InvalidState>(
        directory.native() +
            (stat->uid == uid ? " can be written by others; chmod 700 it"
                              : " belongs to user " + std::to_string(stat->uid) + ", not to user " +
                                    std::to_string(uid)) +
            ", or name another directory",
        {}, {}, directory.native());
  }
}

}  // namespace meshstage
