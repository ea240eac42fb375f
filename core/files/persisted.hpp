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

#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/os/file_system.hpp>

namespace meshstage {

/// The parts of a persisted image's file name:
/// - `<job>.g<generation>.s<step>.r<rank>of<world>.own.safetensors`: an image, written by its owner
/// - `<job>.g<generation>.s<step>.r<rank>of<world>.held-by-<holder>.safetensors`: its replica,
/// written by a holder
/// Numbers are padded with zeros (generation 6, step 12, ranks 5 digits) so that ls sorts by age.
struct PersistedName {
  std::string job;
  ImageId id;
  int rank = 0;  ///< The owner.
  int world_size = 1;
  std::optional<int> holder;  ///< The writer, unless the owner wrote it.

  [[nodiscard]] int writer() const noexcept { return holder.value_or(rank); }
  friend bool operator==(const PersistedName&, const PersistedName&) = default;
};
/// The file name. Throws InvalidArgument for numbers or a job name that no file can have.
[[nodiscard]] MESHSTAGE_API std::string to_file_name(const PersistedName& name);
/// The inverse of to_file_name(); nothing for any other name.
[[nodiscard]] MESHSTAGE_API std::optional<PersistedName> parse_file_name(
    std::string_view file_name);

/// Throws CorruptData, naming the image that the file holds, unless it is the one that `name` says.
MESHSTAGE_API void check_holds(const PersistedName& name, const ImageIdentity& held);

struct PersistedImage {
  PersistedName name;
  std::filesystem::path path;
  std::uint64_t bytes = 0;
};
/// The images of a job in a directory, ascending by id, then rank, own ones before replicas. Reads
/// names only and opens no file. An empty `job` means every job. A directory that does not exist
/// has no images.
[[nodiscard]] MESHSTAGE_API std::vector<PersistedImage> list_images(
    FileSystem& fs, const std::filesystem::path& directory, std::string_view job);

/// list_images() for a directory to which only this user may write, without names of generations
/// from kLastGeneration on. Opens no file and asks for no sizes; open a file by
/// MappedFile::open_own(). `complain` gets a text for each name that is passed over.
[[nodiscard]] MESHSTAGE_API std::vector<PersistedImage> list_names(
    FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
    const std::function<void(const std::string&)>& complain = {});
/// The newest image of list_names() that only this user can have written. Opens no older one.
[[nodiscard]] MESHSTAGE_API std::optional<PersistedImage> newest_own_image(
    FileSystem& fs, std::vector<PersistedImage> listed);

/// The images from which a job may be restored. These are the files of list_images() that are
/// regular files, that only this user can have written, and whose generation is below
/// kLastGeneration; only this user may write to their directory. `complain` gets a text for each
/// other file: its path, and why it is passed over. Opens each file and reads nothing.
[[nodiscard]] MESHSTAGE_API std::vector<PersistedImage> list_own_images(
    FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
    const std::function<void(const std::string&)>& complain = {});

/// Removes the images of `job` that are older than `persisted_everywhere` and whose writer
/// `removes` accepts. `persisted_everywhere` is the newest image that *every* rank is known to have
/// persisted. The newest `keep` ids among these older images stay. Removes nothing for kNoImage.
/// Returns how many files were removed.
MESHSTAGE_API std::size_t prune(FileSystem& fs, const std::filesystem::path& directory,
                                std::string_view job,
                                const std::function<bool(int writer)>& removes,
                                ImageId persisted_everywhere, std::size_t keep = 0);

/// A whole file, or a part of one, mapped read-only. A caller that keeps views of bytes() must also
/// keep the pointer. The file's name may be removed meanwhile, but its contents must not change; a
/// published image never changes. Threads: any.
class MESHSTAGE_API MappedFile {
 public:
  /// Throws NotFound, CorruptData if the file is empty, and IoError. A directory, a pipe and the
  /// like give IoError at once.
  [[nodiscard]] static std::shared_ptr<const MappedFile> open(FileSystem& fs,
                                                              const std::filesystem::path& path);
  /// open() for a file that only this user can have written. Throws InvalidState, saying what is
  /// wrong, for a link and for a file that another user owns or may write to.
  [[nodiscard]] static std::shared_ptr<const MappedFile> open_own(
      FileSystem& fs, const std::filesystem::path& path);
  /// Part of a file that is mapped already: `bytes`, which stay readable as long as `keep` lives.
  [[nodiscard]] static std::shared_ptr<const MappedFile> part_of(std::filesystem::path path,
                                                                 std::span<const std::byte> bytes,
                                                                 std::shared_ptr<const void> keep);
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

/// Returns the value of an environment variable; nothing if it is not set.
using EnvironmentLookup = std::function<std::optional<std::string>(const char* name)>;
/// The default directory of a job's images: `$XDG_STATE_HOME/meshstage/<job>` (if that variable is
/// an absolute path), else `$HOME/.local/state/meshstage/<job>`, else
/// `/var/tmp/meshstage-<uid>/<job>`. It depends on user and job alone, so that a restart finds it.
/// Makes no directory.
[[nodiscard]] MESHSTAGE_API std::filesystem::path default_directory(
    std::string_view job, std::uint32_t uid, const EnvironmentLookup& lookup);
/// default_directory() with this process's user and environment.
[[nodiscard]] MESHSTAGE_API std::filesystem::path default_directory(std::string_view job);

/// Makes the directory (0700) if it is missing. Throws InvalidState if it belongs to another user
/// or others may write to it.
MESHSTAGE_API void make_private_directory(FileSystem& fs, const std::filesystem::path& directory);

}  // namespace meshstage
