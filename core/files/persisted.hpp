#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/image/identity.hpp>
#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// What the name of a persisted image says:
/// - `<job>.g<generation>.s<step>.r<rank>of<world>.own.safetensors`: written by the rank itself
/// - `<job>.g<generation>.s<step>.r<rank>of<world>.held-by-<holder>.safetensors`: its replica, by
///   the holder
/// Numbers are padded with zeros (generation 6, step 12, ranks 5 digits) so that ls sorts by age.
struct PersistedName {
  std::string job;
  ImageId id;
  int rank = 0;  ///< Whose state it is.
  int world_size = 1;
  std::optional<int> holder;  ///< Who wrote it, if not that rank itself.

  [[nodiscard]] int writer() const noexcept { return holder.value_or(rank); }
  friend bool operator==(const PersistedName&, const PersistedName&) = default;
};
/// The file name. Throws InvalidArgument for numbers or a job name that no file can have.
[[nodiscard]] MESHSTAGE_API std::string to_file_name(const PersistedName& name);
/// Nothing if it is not such a name, to the letter: to_file_name() of the result is `file_name`.
[[nodiscard]] MESHSTAGE_API std::optional<PersistedName> parse_file_name(
    std::string_view file_name);

struct PersistedImage {
  PersistedName name;
  std::filesystem::path path;
  std::uint64_t bytes = 0;
};
/// The images of a job in a directory, ascending by id, then rank, own ones before replicas. Names
/// only: nothing is opened. An empty `job` means every job. A directory that does not exist has
/// none.
[[nodiscard]] MESHSTAGE_API std::vector<PersistedImage> list_images(
    FileSystem& fs, const std::filesystem::path& directory, std::string_view job);

/// No job forms so many generations: a file whose name says that it is of a later one is not ours.
inline constexpr std::uint64_t kMaxGeneration = std::uint64_t{1} << 62U;

/// The images that a job may be restored from: those of list_images() that are regular files which
/// nobody but this user can have written, in a directory which nobody else can write to, and not of
/// a generation above kMaxGeneration. `complain` is told of each other one: its path, and why it is
/// passed over. Opens each file and reads nothing.
[[nodiscard]] MESHSTAGE_API std::vector<PersistedImage> list_own_images(
    FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
    const std::function<void(const std::string&)>& complain = {});

/// Removes the images of `job` written by rank `writer` that are older than `persisted_everywhere`:
/// the newest image that *every* rank is known to have persisted. Nothing newer or equal, and
/// nothing at all for kNoImage. `keep` older ids are kept besides. Returns how many files were
/// removed.
MESHSTAGE_API std::size_t prune(FileSystem& fs, const std::filesystem::path& directory,
                                std::string_view job, int writer, ImageId persisted_everywhere,
                                std::size_t keep = 0);

/// A whole file, mapped read-only; views into bytes() keep it alive by holding the pointer. The
/// file's name may be removed meanwhile, its contents not changed: published images never are.
/// Threads: any.
class MESHSTAGE_API MappedFile {
 public:
  /// Throws NotFound, IoError (also for a directory, a pipe or the like, which are not waited for);
  /// CorruptData if it is empty.
  [[nodiscard]] static std::shared_ptr<const MappedFile> open(FileSystem& fs,
                                                              const std::filesystem::path& path);
  /// The same for a file that nobody but this user can have written. Throws InvalidState, saying
  /// what is wrong, for a link and for a file that another user owns or may write to.
  [[nodiscard]] static std::shared_ptr<const MappedFile> open_own(
      FileSystem& fs, const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept;
  [[nodiscard]] const std::filesystem::path& path() const noexcept;

 private:
  struct State;
  explicit MappedFile(std::unique_ptr<State> state);
  static std::shared_ptr<const MappedFile> map(File& file, const std::filesystem::path& path);
  std::unique_ptr<State> state_;
};

/// Looks an environment variable up; nothing if it is not set.
using EnvironmentLookup = std::function<std::optional<std::string>(const char* name)>;
/// Where a job's images go unless a directory is named: `$XDG_STATE_HOME/meshstage/<job>` (if that
/// variable is an absolute path), else `$HOME/.local/state/meshstage/<job>`, else
/// `/var/tmp/meshstage-<uid>/<job>`. It follows from user and job alone, so that a restart finds
/// it. Makes nothing.
[[nodiscard]] MESHSTAGE_API std::filesystem::path default_directory(
    std::string_view job, std::uint32_t uid, const EnvironmentLookup& lookup);
/// The same for this process's user and environment.
[[nodiscard]] MESHSTAGE_API std::filesystem::path default_directory(std::string_view job);

/// Makes the directory (0700) if it is missing. Throws InvalidState if it belongs to another user
/// or others may write to it.
MESHSTAGE_API void make_private_directory(FileSystem& fs, const std::filesystem::path& directory);

}  // namespace meshstage
