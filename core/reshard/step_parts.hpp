#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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
///     if (!StepParts::has(*old, 3)) StepParts::add(*old, 3, ends_from_another_rank);
///     for (const ImagePart& part : StepParts::needed(*old, state, rank, world_size, options)) {
///       receive(StepParts::room(*old, part));  // the sender: StepParts::bytes(its_old, part)
///     }
///     auto assembly = Assembly::plan(*old, state, rank, world_size, options);
struct MESHSTAGE_API StepParts {
  /// The files of that step in the directory, whichever ranks' they are. Reads names only.
  [[nodiscard]] static StepOnDisk find(FileSystem& fs, const std::filesystem::path& directory,
                                       std::string_view job, ImageId id, int world_size);
  /// Like the constructor, but leaves out the ranks of which no file is sound.
  [[nodiscard]] static std::unique_ptr<StepStates> open(
      FileSystem& fs, StepOnDisk step, std::string job,
      std::function<void(const std::string&)> complain = {}, FileRead read = {});

  [[nodiscard]] static bool has(const StepStates& states, int old_rank);
  /// What another rank has to add() of an image that this one has.
  [[nodiscard]] static std::vector<std::byte> ends(const StepStates& states, int old_rank);
  /// Makes room for an image, of which only the parts that come take memory. `where`, in words, is
  /// for errors. Throws CorruptData if the ends are not those of that rank's image.
  static void add(StepStates& states, int old_rank, std::span<const std::byte> ends,
                  const std::string& where);

  /// The parts of added images that the new rank's Assembly reads, ascending, none twice. Throws
  /// what Assembly::plan() throws about structure and plain values. Each image must be there.
  [[nodiscard]] static std::vector<ImagePart> needed(const StepStates& states, const Value& state,
                                                     int rank, int world_size,
                                                     const ReshardOptions& options);
  /// Where the bytes of a part go. Throws InvalidArgument if the image was not added, or is
  /// smaller.
  [[nodiscard]] static std::span<std::byte> room(const StepStates& states, const ImagePart& part);
  /// True if a part that came did not prove to be what its image has.
  [[nodiscard]] static bool came_damaged(const StepStates& states);
  /// The bytes of a part, unproven, and the file that has them. Throws InvalidArgument if this rank
  /// has no file of the image, or a smaller one.
  [[nodiscard]] static std::pair<std::span<const std::byte>, std::filesystem::path> bytes(
      const StepStates& states, const ImagePart& part);
};

}  // namespace meshstage::detail
