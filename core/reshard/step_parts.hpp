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
#include <utility>
#include <vector>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/reshard/assembly.hpp>
#include <meshstage/core/reshard/step_on_disk.hpp>

namespace meshstage::detail {

/// Some bytes of an old rank's image: whole blocks.
struct ImagePart {
  int old_rank = 0;
  std::uint64_t begin = 0, end = 0;  ///< In the image.
  friend bool operator==(const ImagePart&, const ImagePart&) = default;
};

/// The states of a step whose files lie on the disks of several hosts. A rank opens those that it
/// has. Of each other image it adds the *ends* that another rank sends: manifest, plain values and
/// digests. Then it knows which parts it needs of these images, and other ranks send them, too.
/// Ends and parts are proven like files, so nothing changes for the Assembly.
///
///     auto old = StepParts::open(fs, StepParts::find(fs, directory, job, id, 4), job);
///     if (!StepParts::has(*old, 3)) StepParts::add(*old, 3, ends_from_rank_1, "rank 1");
///     const auto parts = StepParts::needed(*old, state, rank, world_size, options);
///     if (!parts) ...;  // a file was damaged: again, maybe with another rank's file
///     for (const ImagePart& part : *parts) {
///       receive(StepParts::room(*old, part));  // the sender: StepParts::bytes(its_old, part)
///     }
///     auto assembly = Assembly::plan(*old, state, rank, world_size, options);
struct MESHSTAGE_API StepParts {
  /// The files of that step in the directory, whichever ranks' they are. Reads names only.
  [[nodiscard]] static StepOnDisk find(FileSystem& fs, const std::filesystem::path& directory,
                                       std::string_view job, ImageId id, int world_size);
  /// Puts the images of that step in `proven` before the step's other files, unless they are among
  /// them: images that lie elsewhere than in its directory.
  static void add_images(StepOnDisk& step, std::string_view job,
                         const std::vector<std::shared_ptr<const MappedFile>>& proven);
  /// Like the constructor, but leaves out the ranks of which no file is sound. `crew`, which must
  /// outlive the states, proves; `read` is called on its threads, once at a time. `proven`: files
  /// of which the caller has proven each byte; those of the step are used as they are mapped there,
  /// and not proven again.
  [[nodiscard]] static std::unique_ptr<StepStates> open(
      FileSystem& fs, StepOnDisk step, std::string job,
      std::function<void(const std::string&)> complain = {}, FileRead read = {},
      Crew* crew = nullptr, const std::vector<std::shared_ptr<const MappedFile>>& proven = {});

  /// Whether the image is there: in a file, or added.
  [[nodiscard]] static bool has(const StepStates& states, int old_rank);
  [[nodiscard]] static bool has_file(const StepStates& states, int old_rank);
  /// What another rank has to add() of an image. Throws InvalidArgument if this rank has no file.
  [[nodiscard]] static std::vector<std::byte> ends(const StepStates& states, int old_rank);
  /// Makes room for an image. As its pages are first touched by the parts that come, only these
  /// take memory, unless the system sets memory aside beforehand. `where`, in words, is for errors.
  /// Throws CorruptData if the ends are not those of that rank's image.
  static void add(StepStates& states, int old_rank, std::span<const std::byte> ends,
                  const std::string& where);

  /// Throws StructureMismatch unless `state` has the paths that old rank `rank` had, and no other.
  /// Its image must be there.
  static void require_same_paths(const StepStates& states, const Value& state, int rank,
                                 const ReshardOptions& options);

  /// The parts of added images that the new rank's Assembly reads, ascending, none twice. Proves
  /// what it reads of files. Nothing if one of these is damaged: it was passed over, for the rank's
  /// next file or none (has_file()). Throws what Assembly::plan() throws about structure and plain
  /// values. Each image must be there.
  [[nodiscard]] static std::optional<std::vector<ImagePart>> needed(StepStates& states,
                                                                    const Value& state, int rank,
                                                                    int world_size,
                                                                    const ReshardOptions& options);
  /// Proves a part of a file. False if it is damaged: it was passed over, as by needed(). Throws
  /// what bytes() throws.
  [[nodiscard]] static bool prove(StepStates& states, const ImagePart& part);
  /// Where the bytes of a part go. Throws InvalidArgument if the image was not added, or is
  /// smaller.
  [[nodiscard]] static std::span<std::byte> room(const StepStates& states, const ImagePart& part);
  /// True if a part that came did not prove to be what its image has.
  [[nodiscard]] static bool came_damaged(const StepStates& states);
  /// The bytes of a part, unproven, and the file that has them. Throws InvalidArgument if this rank
  /// has no file of the image, or a smaller one.
  [[nodiscard]] static std::pair<std::span<const std::byte>, std::filesystem::path> bytes(
      const StepStates& states, const ImagePart& part);

 private:
  static bool pass_over(StepStates& states, const CorruptData& why);
};

}  // namespace meshstage::detail
