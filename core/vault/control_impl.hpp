#pragma once
// The page that all incarnations of a rank's vault have in common: the newest incarnation, the
// owner of each, and the highest generation seen. Each field is one 64-bit word of shared memory,
// read and written atomically, so that a fenced owner notices with one load. The page is only ever
// changed by the user's own processes.
//
// Why the owners are written here and not in the lock files: POSIX drops a process's record locks
// when it closes *any* descriptor of the file, so a process must never open a lock file that it
// owns. The owner table says which lock files a process owns. (pid, instance) names one process
// image, so the entry of an owner that died without clearing it fits no living process.
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <optional>

#include <meshstage/core/memory/mapping.hpp>

namespace meshstage::detail {

struct VaultOwner {
  std::uint64_t incarnation = 0;
  std::int64_t pid = 0;
  std::uint64_t start_time = 0;
  std::uint64_t instance = 0;  // 0: let go
};

class ControlPage {
 public:
  ControlPage() = default;
  /// Opens the page, or makes it: the page is finished under a temporary name and then linked, so
  /// no process sees a half-made one. Throws InvalidState (others may write the file), CorruptData
  /// (not a control page), IoError.
  static ControlPage open_or_create(FileSystem& fs, const std::filesystem::path& path);
  /// Opens the page; nothing if there is none.
  static std::optional<ControlPage> open(FileSystem& fs, const std::filesystem::path& path);

  [[nodiscard]] std::uint64_t newest() const;
  void raise_newest(std::uint64_t incarnation);
  /// The epoch in which the vault was last taken; 0 if only processes without epochs took it.
  [[nodiscard]] std::uint64_t epoch() const;
  /// True if the epoch was lower, and is `epoch` now.
  [[nodiscard]] bool raise_epoch(std::uint64_t epoch);
  [[nodiscard]] std::uint64_t generation() const;
  /// True if it was lower, and is `generation` now.
  bool raise_generation(std::uint64_t generation);
  /// The instance of the owner that entered a generation last; 0: none did.
  [[nodiscard]] std::uint64_t joined() const;
  void set_joined(std::uint64_t instance);
  /// The last generation that an owner entered; 0: none did. generation() may be higher.
  [[nodiscard]] std::uint64_t entered() const;
  void set_entered(std::uint64_t generation);
  /// The last owner that was written for `incarnation`.
  [[nodiscard]] std::optional<VaultOwner> owner(std::uint64_t incarnation) const;
  void set_owner(const VaultOwner& owner);
  /// An entry whose owner is this very process image; nothing if there is none.
  [[nodiscard]] std::optional<VaultOwner> owned_by(const ProcessIdentity& process) const;

 private:
  explicit ControlPage(File& file);
  [[nodiscard]] std::uint64_t load(std::size_t word) const;
  void store(std::size_t word, std::uint64_t value);
  /// True if the word was lower, and is `value` now.
  bool raise(std::size_t word, std::uint64_t value);
  Mapping mapping_;
};

/// Opens a vault file for reading and writing. Refuses a file that others own or may write, because
/// every user may make files in /dev/shm. Throws InvalidState, SystemError.
std::unique_ptr<File> open_private(FileSystem& fs, const std::filesystem::path& path);

/// The file was not there.
inline bool is_missing(const SystemError& e) { return e.error_number() == ENOENT; }

/// A temporary name for a file that this process is making.
std::filesystem::path temporary_path(const std::filesystem::path& path,
                                     const ProcessIdentity& process);

}  // namespace meshstage::detail
