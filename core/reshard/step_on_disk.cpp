#include <meshstage/core/reshard/step_on_disk.hpp>

#include <algorithm>
#include <span>
#include <unordered_set>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/reshard/assembly_impl.hpp>
#include <meshstage/core/tree/walk.hpp>

namespace meshstage {
namespace {

/// Where the last storage of a decoded image ends.
class EndOfStorages {
 public:
  EndOfStorages(std::span<const std::byte> image, std::uint64_t data_begin)
      : image_(image), offset_(data_begin) {}

  void look(const Value& value) {
    if (const auto* tensor = value.get_if<Tensor>()) {
      const Storage& storage = tensor->storage();
      const auto begin = static_cast<std::uint64_t>(storage.data() - image_.data());
      if (storage.nbytes() > 0) offset_ = std::max(offset_, begin + storage.nbytes());
      if (const auto* attributes = value.attributes()) look(Value(*attributes));
      return;
    }
    if (value.is_scalar() || !seen_.insert(detail::container_identity(value)).second) return;
    detail::for_each_below(value, [&](const Key&, const Value& inner) { look(inner); });
  }
  [[nodiscard]] std::uint64_t offset() const noexcept { return offset_; }

 private:
  std::span<const std::byte> image_;
  std::uint64_t offset_;
  std::unordered_set<const void*> seen_;
};

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

struct StepStates::OpenFile {
  std::filesystem::path path;
  std::shared_ptr<const MappedFile> mapped;
  ImageProof proof;
};

StepStates::StepStates(FileSystem& fs, StepOnDisk step, std::string job,
                       std::function<void(const std::string&)> complain, FileRead read)
    : fs_(fs),
      step_(std::move(step)),
      job_(std::move(job)),
      complain_(std::move(complain)),
      read_(std::move(read)),
      files_(step_.files.size()),
      next_(step_.files.size()),
      wrong_(step_.files.size()),
      states_(step_.files.size()) {
  for (std::size_t rank = 0; rank < files_.size(); ++rank) open(rank);
}

StepStates::~StepStates() = default;

/// Opens the rank's next file that is sound as far as it is read here.
void StepStates::open(std::size_t rank) {
  const auto& paths = step_.files[rank];
  while (next_[rank] < paths.size()) {
    const auto& path = paths[next_[rank]++];
    try {
      if (read_) read_(path, 0, 0);
      auto mapped = MappedFile::open_own(fs_, path);
      const auto all = mapped->bytes().size();
      const auto count = [&](std::uint64_t bytes) {
        if (read_) read_(path, bytes, all);
      };
      auto file = std::make_unique<OpenFile>(path, mapped, ImageProof(mapped->bytes(), count));
      states_[rank] = read(*file, rank);
      by_address_[mapped->bytes().data()] = rank;
      files_[rank] = std::move(file);
      return;
    } catch (const Error& e) {
      pass_over(rank, path, e);
    }
  }
  throw make_error<CorruptData>("no file of rank " + std::to_string(rank) + " of " +
                                    std::to_string(step_.world_size) + " of " +
                                    to_string(step_.id) + " is sound" + wrong_[rank],
                                static_cast<int>(rank), step_.id.step);
}

void StepStates::pass_over(std::size_t rank, const std::filesystem::path& path, const Error& why) {
  const std::string text = path.string() + ": " + why.what();
  if (complain_) complain_("ignoring " + text);
  wrong_[rank] += "; " + text;
}

/// The state in a file; its structure and its plain values are proven.
Value StepStates::read(OpenFile& file, std::size_t rank) {
  check_holds({job_, step_.id, static_cast<int>(rank), step_.world_size, {}},
              file.proof.info().identity);
  const auto image = file.proof.image();
  Value state = decode_image(image, file.mapped);
  EndOfStorages end(image, file.proof.info().manifest_bytes);
  end.look(state);
  prove(file, end.offset(), image.size());  // the plain values lie behind the storages
  return state;
}

/// Whose file has that address; nothing if none has.
std::optional<std::size_t> StepStates::rank_of(const std::byte* address) const {
  auto it = by_address_.upper_bound(address);
  if (it == by_address_.begin()) return std::nullopt;
  const auto [begin, rank] = *--it;
  if (address >= begin + files_[rank]->proof.image().size()) return std::nullopt;
  return rank;
}

void StepStates::prove(OpenFile& file, std::uint64_t begin, std::uint64_t end) {
  file.proof.prove(begin, end, [&](std::uint64_t bytes) {
    if (read_) read_(file.path, bytes, file.proof.image().size());
  });
}

void StepStates::prove(const Tensor& tensor) {
  if (tensor.numel() == 0) return;
  const auto rank = rank_of(tensor.first_byte());
  if (!rank) return;  // made of proven ones
  OpenFile& file = *files_[*rank];
  const auto begin = static_cast<std::uint64_t>(tensor.first_byte() - file.proof.image().data());
  try {
    prove(file, begin, begin + detail::spanned_bytes(tensor));
  } catch (const CorruptData&) {
    damaged_ = rank;
    throw;
  }
}

void StepStates::prove_all(int rank) {
  const auto at = static_cast<std::size_t>(rank);
  damaged_ = at;
  prove(*files_.at(at), 0, files_.at(at)->proof.image().size());
  damaged_.reset();
}

bool StepStates::pass_over_damaged(const CorruptData& why) {
  if (!damaged_) return false;
  const std::size_t rank = *std::exchange(damaged_, std::nullopt);
  const auto file = std::move(files_[rank]);
  by_address_.erase(file->proof.image().data());
  states_[rank] = Value();
  pass_over(rank, file->path, why);
  open(rank);
  return true;
}

std::vector<Value> read_step(FileSystem& fs, const StepOnDisk& step, std::string_view job,
                             const std::function<void(const std::string&)>& complain,
                             const FileRead& read) {
  StepStates states(fs, step, std::string(job), complain, read);
  for (int rank = 0; rank < step.world_size;) {
    try {
      states.prove_all(rank);
      ++rank;
    } catch (const CorruptData& e) {
      if (!states.pass_over_damaged(e)) throw;
    }
  }
  return states.states();
}

}  // namespace meshstage
