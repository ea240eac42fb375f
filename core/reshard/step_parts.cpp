#include <meshstage/core/reshard/step_parts.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/reshard/assembly_impl.hpp>
#include <meshstage/core/reshard/assembly_parts.hpp>
#include <meshstage/core/reshard/index_impl.hpp>
#include <meshstage/core/reshard/open_image_impl.hpp>

namespace meshstage::detail {
namespace {

/// Ends as bytes: three numbers of 64 bits (the image's bytes, where its first bytes end, where its
/// last ones begin), then these first and last bytes.
constexpr std::size_t kNumbers = 24;

std::uint64_t block_begin(const ImageInfo& info, std::uint64_t offset) {
  return offset - (offset - info.manifest_bytes) % info.block_bytes;
}

std::string text_of(const ImagePart& part) {
  return "bytes " + std::to_string(part.begin) + " to " + std::to_string(part.end) +
         " of the image of rank " + std::to_string(part.old_rank) + " of the old job";
}

}  // namespace

StepOnDisk StepParts::find(FileSystem& fs, const std::filesystem::path& directory,
                           std::string_view job, ImageId id, int world_size) {
  StepOnDisk step{id, world_size, {}};
  step.files.resize(static_cast<std::size_t>(world_size));
  for (const auto& image : list_names(fs, directory, job)) {  // own before replicas
    const auto& name = image.name;
    if (name.id != id || name.world_size != world_size) continue;
    step.files.at(static_cast<std::size_t>(name.rank)).push_back(image.path);
  }
  return step;
}

void StepParts::add_images(StepOnDisk& step, std::string_view job,
                           const std::vector<std::shared_ptr<const MappedFile>>& proven) {
  for (const auto& image : proven) {
    const ImageIdentity who = read_info(image->bytes()).identity;
    if (who.job != job || who.id != step.id || who.world_size != step.world_size) continue;
    auto& files = step.files.at(static_cast<std::size_t>(who.rank));
    if (std::find(files.begin(), files.end(), image->path()) == files.end()) {
      files.insert(files.begin(), image->path());
    }
  }
}

std::unique_ptr<StepStates> StepParts::open(
    FileSystem& fs, StepOnDisk step, std::string job,
    std::function<void(const std::string&)> complain, FileRead read, Crew* crew,
    const std::vector<std::shared_ptr<const MappedFile>>& proven) {
  std::map<std::filesystem::path, std::shared_ptr<const MappedFile>> by_path;
  for (const auto& file : proven) by_path.emplace(file->path(), file);
  std::unique_ptr<StepStates> states(new StepStates(fs, std::move(step), std::move(job),
                                                    std::move(complain), std::move(read), true,
                                                    std::move(by_path)));
  states->crew_ = crew;
  return states;
}

bool StepParts::has(const StepStates& states, int old_rank) {
  return states.images_.at(static_cast<std::size_t>(old_rank)) != nullptr;
}

bool StepParts::has_file(const StepStates& states, int old_rank) {
  const auto& image = states.images_.at(static_cast<std::size_t>(old_rank));
  return image && !image->room;
}

std::vector<std::byte> StepParts::ends(const StepStates& states, int old_rank) {
  if (!has_file(states, old_rank)) {
    throw InvalidArgument("this rank has no file of rank " + std::to_string(old_rank) +
                          " of the old job");
  }
  const auto& image = *states.images_[static_cast<std::size_t>(old_rank)];
  const auto bytes = image.proof.image();
  const auto& info = image.proof.info();
  const std::uint64_t front = info.manifest_bytes, back = block_begin(info, image.values_begin);
  std::vector<std::byte> ends(kNumbers + front + (bytes.size() - back));
  little_endian::store(ends.data(), std::uint64_t{bytes.size()});
  little_endian::store(ends.data() + 8, front);
  little_endian::store(ends.data() + 16, back);
  std::memcpy(ends.data() + kNumbers, bytes.data(), front);
  std::memcpy(ends.data() + kNumbers + front, bytes.data() + back, bytes.size() - back);
  return ends;
}

void StepParts::add(StepStates& states, int old_rank, std::span<const std::byte> ends,
                    const std::string& where) {
  const auto refuse = [&](const std::string& why) {
    throw make_error<CorruptData>("what came of the image of rank " + std::to_string(old_rank) +
                                      " of the old job from " + where + " is not its ends: " + why,
                                  old_rank, states.step_.id.step);
  };
  if (ends.size() < kNumbers) refuse("it is too short");
  const auto number = [&](std::size_t i) {
    return little_endian::load<std::uint64_t>(ends.data() + 8 * i);
  };
  const std::uint64_t all = number(0), front = number(1), back = number(2);
  if (front > back || back > all || ends.size() - kNumbers != front + (all - back)) {
    refuse("its sizes do not go together");
  }
  const Storage room = Storage::allocate(all);
  std::memcpy(room.data(), ends.data() + kNumbers, front);
  std::memcpy(room.data() + back, ends.data() + kNumbers + front, all - back);
  states.add(static_cast<std::size_t>(old_rank),
             std::make_unique<StepStates::OpenImage>(where, std::make_shared<Storage>(room),
                                                     ImageProof(room.bytes()), room));
}

/// If the block of a file was damaged, passes over that file. False if something else is wrong.
bool StepParts::pass_over(StepStates& states, const CorruptData& why) {
  if (!states.damaged_) return false;
  try {
    (void)states.pass_over_damaged(why);
  } catch (const CorruptData&) {
    // It was the rank's last one here: the image is not there any more. That was told.
  }
  return true;
}

bool StepParts::prove(StepStates& states, const ImagePart& part) {
  (void)bytes(states, part);
  const auto rank = static_cast<std::size_t>(part.old_rank);
  try {
    states.prove(*states.images_[rank], part.begin, part.end);
    return true;
  } catch (const CorruptData& e) {
    states.damaged_ = rank;
    return !pass_over(states, e);
  }
}

void StepParts::require_same_paths(const StepStates& states, const Value& state, int rank,
                                   const ReshardOptions& options) {
  const std::array both{states.states().at(static_cast<std::size_t>(rank)), state};
  const auto lacking = OldIndex(both, options.readers).lacking();
  if (!lacking) return;
  const std::string who = "rank " + std::to_string(rank);
  throw mismatch(lacking->first, lacking->second == 0
                                     ? who + " had it, and its state does not have it any more"
                                     : who + " did not have it");
}

std::optional<std::vector<ImagePart>> StepParts::needed(StepStates& states, const Value& state,
                                                        int rank, int world_size,
                                                        const ReshardOptions& options) {
  std::map<std::size_t, std::vector<bool>> blocks;  // by old rank: whether it is needed
  const auto needs = [&](const Tensor& tensor) {
    if (tensor.numel() == 0) return;
    const auto old_rank = states.rank_of(tensor.first_byte());
    if (!old_rank) return;
    const auto& image = *states.images_[*old_rank];
    if (!image.room) return states.prove(tensor);
    const auto& info = image.proof.info();
    // Blocks from values_begin on came with the ends.
    const std::uint64_t back = block_begin(info, image.values_begin);
    const auto begin = static_cast<std::uint64_t>(tensor.first_byte() - image.room->data());
    const std::uint64_t end = std::min(begin + spanned_bytes(tensor), back);
    auto& wanted = blocks[*old_rank];
    wanted.resize((back - info.manifest_bytes) / info.block_bytes);
    for (std::uint64_t at = block_begin(info, begin); at < end; at += info.block_bytes) {
      wanted[(at - info.manifest_bytes) / info.block_bytes] = true;
    }
  };
  try {
    AssemblyParts::ask(states, state, rank, world_size, options, needs);
  } catch (const CorruptData& e) {
    if (!pass_over(states, e)) throw;
    return std::nullopt;
  }
  std::vector<ImagePart> parts;
  for (const auto& [old_rank, wanted] : blocks) {
    const auto& info = states.images_[old_rank]->proof.info();
    for (auto at = std::find(wanted.begin(), wanted.end(), true); at != wanted.end();) {
      const auto end = std::find(at, wanted.end(), false);
      const auto offset = [&](std::vector<bool>::const_iterator block) {
        return info.manifest_bytes +
               static_cast<std::uint64_t>(block - wanted.begin()) * info.block_bytes;
      };
      parts.push_back({static_cast<int>(old_rank), offset(at), offset(end)});
      at = std::find(end, wanted.end(), true);
    }
  }
  return parts;
}

std::span<std::byte> StepParts::room(const StepStates& states, const ImagePart& part) {
  const auto& image = states.images_.at(static_cast<std::size_t>(part.old_rank));
  if (!image || !image->room || part.begin > part.end || part.end > image->room->nbytes()) {
    throw InvalidArgument("there is no room for " + text_of(part));
  }
  return image->room->bytes().subspan(part.begin, part.end - part.begin);
}

bool StepParts::came_damaged(const StepStates& states) { return states.came_damaged_; }

std::pair<std::span<const std::byte>, std::filesystem::path> StepParts::bytes(
    const StepStates& states, const ImagePart& part) {
  const auto& image = states.images_.at(static_cast<std::size_t>(part.old_rank));
  if (!image || image->room || part.begin > part.end || part.end > image->proof.image().size()) {
    throw InvalidArgument("this rank has no file with " + text_of(part));
  }
  return {image->proof.image().subspan(part.begin, part.end - part.begin), image->path};
}

}  // namespace meshstage::detail
