#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/export.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/identity/identity.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// A step for which a directory has a file of every rank of the job that staged it.
struct StepOnDisk {
  ImageId id;
  int world_size = 1;
  /// By rank: the rank's own file first, then the copies that its holders wrote.
  std::vector<std::vector<std::filesystem::path>> files;
};

/// The whole steps of a job in a directory, ascending by id, whatever their world sizes. Reads
/// names only. `complain` gets a text for each file that other users can have written.
[[nodiscard]] MESHSTAGE_API std::vector<StepOnDisk> list_steps_on_disk(
    FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
    const std::function<void(const std::string&)>& complain = {});

/// Called before a file is opened, with 0 bytes, and when `bytes` more of its `of` bytes were read.
using FileRead =
    std::function<void(const std::filesystem::path& file, std::uint64_t bytes, std::uint64_t of)>;

namespace detail {
struct StepParts;
}

/// The states of all ranks of a step, in files of which no more is read than is asked for. So each
/// rank of a new job reads its own part of the old one, whatever the number of ranks.
///
///     StepStates old(fs, step, "gpt2");
///     auto assembly = Assembly::plan(old, state, rank, world_size, options);
///
/// Threads: one.
class MESHSTAGE_API StepStates {
 public:
  /// Opens the first file of every rank, and reads its structure and its plain values. Calls
  /// `complain` for each damaged file, whose place the rank's next file takes. Throws CorruptData
  /// naming the rank whose files are all damaged. `complain` and `read` are kept.
  StepStates(FileSystem& fs, StepOnDisk step, std::string job,
             std::function<void(const std::string&)> complain = {}, FileRead read = {})
      : StepStates(fs, std::move(step), std::move(job), std::move(complain), std::move(read), false,
                   {}) {}
  StepStates(const StepStates&) = delete;
  StepStates& operator=(const StepStates&) = delete;
  ~StepStates();

  /// By rank: read-only views of the files, which they keep mapped. All nodes are OpaqueNodes. The
  /// elements of a tensor may only be used after prove().
  [[nodiscard]] const std::vector<Value>& states() const noexcept { return states_; }
  /// Reads and checks the blocks in which the elements of `tensor` lie; each block only the first
  /// time. `tensor` is a view of a tensor of states(); others are proven already. If a block is
  /// damaged throws CorruptData, after which pass_over_damaged() says how to go on.
  void prove(const Tensor& tensor);
  /// prove() for all that there is of a rank.
  void prove_all(int rank);
  /// After prove() threw `why`: `complain`s, and takes the rank's next file. states() changes, and
  /// views of the damaged file are not to be used. False if prove() did not throw last. Throws
  /// CorruptData naming the rank if that was its last file.
  bool pass_over_damaged(const CorruptData& why);

 private:
  friend struct detail::StepParts;
  struct OpenImage;
  StepStates(FileSystem& fs, StepOnDisk step, std::string job,
             std::function<void(const std::string&)> complain, FileRead read,
             bool partial,  ///< Leaves out a rank without a sound file.
             std::map<std::filesystem::path, std::shared_ptr<const MappedFile>> proven);
  [[nodiscard]] bool open(std::size_t rank);
  [[noreturn]] void refuse(std::size_t rank) const;
  void add(std::size_t rank, std::unique_ptr<OpenImage> image);
  void pass_over(std::size_t rank, const std::filesystem::path& path, const Error& why);
  [[nodiscard]] std::optional<std::size_t> rank_of(const std::byte* address) const;
  void prove(OpenImage& image, std::uint64_t begin, std::uint64_t end);
  [[nodiscard]] Value read(OpenImage& image, std::size_t rank);

  FileSystem& fs_;
  const StepOnDisk step_;
  const std::string job_;
  const std::function<void(const std::string&)> complain_;
  const FileRead read_;
  /// Files of which the caller has proven each byte.
  const std::map<std::filesystem::path, std::shared_ptr<const MappedFile>> proven_;
  Crew* crew_ = nullptr;                            ///< Proves, if there is one.
  std::vector<std::unique_ptr<OpenImage>> images_;  ///< By rank.
  std::vector<std::size_t> next_;                   ///< By rank: the file after the open one.
  std::vector<std::string> wrong_;                  ///< By rank: what was wrong with those before.
  std::vector<Value> states_;
  std::map<const std::byte*, std::size_t> by_address_;  ///< Begin of a mapping: the rank.
  std::optional<std::size_t> damaged_;                  ///< The rank whose block was.
  bool came_damaged_ = false;                           ///< A block that came from another rank.
};

/// StepStates::states() of which everything was proven.
[[nodiscard]] MESHSTAGE_API std::vector<Value> read_step(
    FileSystem& fs, const StepOnDisk& step, std::string_view job,
    const std::function<void(const std::string&)>& complain = {}, const FileRead& read = {});

}  // namespace meshstage
