#include <meshstage/core/reshard/step_on_disk.hpp>

#include <algorithm>
#include <span>
#include <unordered_set>
#include <utility>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/reshard/assembly_impl.hpp>
#include <meshstage/core/reshard/open_image_impl.hpp>
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

StepStates::StepStates(FileSystem& fs, StepOnDisk step, std::string job,
                       std::function<void(const std::string&)> complain, FileRead read,
                       bool partial,
                       std::map<std::filesystem::path, std::shared_ptr<const MappedFile>> proven)
    : fs_(fs),
      step_(std::move(step)),
      job_(std::move(job)),
      complain_(std::move(complain)),
      read_(std::move(read)),
      proven_(std::move(proven)),
      images_(step_.files.size()),
      next_(step_.files.size()),
      wrong_(step_.files.size()),
      states_(step_.files.size()) {
  for (std::size_t rank = 0; rank < images_.size(); ++rank) {
    if (!open(rank) && !partial) refuse(rank);
  }
}

StepStates::~StepStates() = default;

/// Opens the rank's next file that is sound as far as it is read here. False if there is none.
bool StepStates::open(std::size_t rank) {
  const auto& paths = step_.files[rank];
  while (next_[rank] < paths.size()) {
    const auto& path = paths[next_[rank]++];
    try {
      if (read_) read_(path, 0, 0);
      const auto before = proven_.find(path);
      const bool is_proven = before != proven_.end();
      auto mapped = is_proven ? before->second : MappedFile::open_own(fs_, path);
      const auto all = mapped->bytes().size();
      const auto count = [&](std::uint64_t bytes) {
        if (read_) read_(path, bytes, all);
      };
      ImageProof proof(mapped->bytes(), count);
      if (is_proven) proof.set_proven();
      add(rank, std::make_unique<OpenImage>(path, mapped, std::move(proof)));
      return true;
    } catch (const Error& e) {
      pass_over(rank, path, e);
    }
  }
  return false;
}

void StepStates::refuse(std::size_t rank) const {
  throw make_error<CorruptData>("no file of rank " + std::to_string(rank) + " of " +
                                    std::to_string(step_.world_size) + " of " +
                                    to_string(step_.id) + " is sound" + wrong_[rank],
                                static_cast<int>(rank), step_.id.step);
}

void StepStates::add(std::size_t rank, std::unique_ptr<OpenImage> image) {
  states_[rank] = read(*image, rank);
  by_address_[image->proof.image().data()] = rank;
  images_[rank] = std::move(image);
}

void StepStates::pass_over(std::size_t rank, const std::filesystem::path& path, const Error& why) {
  const std::string text = path.string() + ": " + why.what();
  if (complain_) complain_("ignoring " + text);
  wrong_[rank] += "; " + text;
}

/// The state in a file; its structure and its plain values are proven.
Value StepStates::read(OpenImage& image, std::size_t rank) {
  check_holds({job_, step_.id, static_cast<int>(rank), step_.world_size, {}},
              image.proof.info().identity);
  const auto bytes = image.proof.image();
  Value state = decode_image(bytes, image.keep);
  EndOfStorages end(bytes, image.proof.info().manifest_bytes);
  end.look(state);
  image.values_begin = end.offset();
  prove(image, image.values_begin, bytes.size());
  return state;
}

/// Whose file has that address; nothing if none has.
std::optional<std::size_t> StepStates::rank_of(const std::byte* address) const {
  auto it = by_address_.upper_bound(address);
  if (it == by_address_.begin()) return std::nullopt;
  const auto [begin, rank] = *--it;
  if (address >= begin + images_[rank]->proof.image().size()) return std::nullopt;
  return rank;
}

void StepStates::prove(OpenImage& image, std::uint64_t begin, std::uint64_t end) {
  Mutex one_at_a_time;
  const auto read = [&](std::uint64_t bytes) {
    if (!read_) return;
    const MutexLock lock(one_at_a_time);
    read_(image.path, bytes, image.proof.image().size());
  };
  image.proof.prove(begin, end, read, crew_);
}

void StepStates::prove(const Tensor& tensor) {
  if (tensor.numel() == 0) return;
  const auto rank = rank_of(tensor.first_byte());
  if (!rank) return;  // made of proven ones
  OpenImage& image = *images_[*rank];
  const auto begin = static_cast<std::uint64_t>(tensor.first_byte() - image.proof.image().data());
  try {
    prove(image, begin, begin + detail::spanned_bytes(tensor));
  } catch (const CorruptData&) {
    damaged_ = rank;
    throw;
  }
}

void StepStates::prove_all(int rank) {
  const auto at = static_cast<std::size_t>(rank);
  damaged_ = at;
  prove(*images_.at(at), 0, images_.at(at)->proof.image().size());
  damaged_.reset();
}

bool StepStates::pass_over_damaged(const CorruptData& why) {
  if (!damaged_) return false;
  const std::size_t rank = *std::exchange(damaged_, std::nullopt);
  const auto image = std::move(images_[rank]);
  by_address_.erase(image->proof.image().data());
  came_damaged_ = came_damaged_ || image->room;
  states_[rank] = Value();
  pass_over(rank, image->path, why);
  if (!open(rank)) refuse(rank);
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
