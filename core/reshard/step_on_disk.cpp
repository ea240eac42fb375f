#include <meshstage/core/reshard/step_on_disk.hpp>

#include <map>
#include <optional>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>

namespace meshstage {
namespace {

Value read_file(FileSystem& fs, const std::filesystem::path& path, const ImageIdentity& wanted,
                const FileRead& read) {
  if (read) read(path, 0, 0);
  const auto file = MappedFile::open_own(fs, path);
  const std::uint64_t all = file->bytes().size();
  const ImageIdentity who = verify_image(file->bytes(), [&](std::uint64_t bytes) {
                              if (read) read(path, bytes, all);
                            }).identity;
  if (who.job != wanted.job || who.rank != wanted.rank || who.id != wanted.id ||
      who.world_size != wanted.world_size) {
    throw CorruptData("it holds " + to_string(who));
  }
  return decode_image(file->bytes(), file);
}

}  // namespace

std::vector<StepOnDisk> list_steps_on_disk(
    FileSystem& fs, const std::filesystem::path& directory, std::string_view job,
    const std::function<void(const std::string&)>& complain) {
  std::map<std::pair<ImageId, int>, std::map<int, std::vector<std::filesystem::path>>> found;
  for (const auto& image : list_own_images(fs, directory, job, complain)) {  // own before replicas
    found[{image.name.id, image.name.world_size}][image.name.rank].push_back(image.path);
  }
  std::vector<StepOnDisk> steps;
  for (auto& [key, ranks] : found) {
    if (static_cast<int>(ranks.size()) != key.second) continue;
    StepOnDisk step{key.first, key.second, {}};
    for (auto& [rank, files] : ranks) step.files.push_back(std::move(files));
    steps.push_back(std::move(step));
  }
  return steps;
}

std::vector<Value> read_step(FileSystem& fs, const StepOnDisk& step, std::string_view job,
                             const std::function<void(const std::string&)>& complain,
                             const FileRead& read) {
  std::vector<Value> states;
  for (const auto& files : step.files) {
    const int rank = static_cast<int>(states.size());
    const ImageIdentity wanted{std::string(job), rank, step.world_size, step.id, kNoImage};
    std::optional<Value> state;
    std::string wrong;
    for (const auto& path : files) {
      try {
        state = read_file(fs, path, wanted, read);
        break;
      } catch (const Error& e) {
        const std::string text = path.string() + ": " + e.what();
        if (complain) complain("ignoring " + text);
        wrong += "; " + text;
      }
    }
    if (!state) {
      throw make_error<CorruptData>("no file of rank " + std::to_string(rank) + " of " +
                                        std::to_string(step.world_size) + " of " +
                                        to_string(step.id) + " is sound" + wrong,
                                    rank, step.id.step);
    }
    states.push_back(std::move(*state));
  }
  return states;
}

}  // namespace meshstage
