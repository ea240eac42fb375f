#include <meshstage/core/replicate/persistence.hpp>

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/reshard/step_on_disk.hpp>

namespace meshstage {

Persistence::Persistence(FileSystem& fs, std::filesystem::path directory, std::string job, int rank,
                         int world_size, replicate::Reads* reads)
    : fs_(&fs),
      directory_(std::move(directory)),
      job_(std::move(job)),
      rank_(rank),
      world_size_(world_size),
      reads_(reads) {}

namespace {

struct Proven {
  std::shared_ptr<const MappedFile> file;
  ImageInfo info;
};

/// Opens and verifies a file. Throws Error.
Proven open_verified(FileSystem& fs, const std::filesystem::path& path, replicate::Reads* reads,
                     Crew* crew = nullptr) {
  replicate::Reads::Reading reading(reads, path.string());
  Proven proven{MappedFile::open_own(fs, path), {}};
  const auto bytes = proven.file->bytes();
  reading.step(0, bytes.size());
  proven.info = verify_image(bytes, [&](std::uint64_t more) { reading.step(more); }, crew);
  return proven;
}

/// The same; the file must hold the image that its name says.
Proven open_proven(FileSystem& fs, const PersistedImage& file, replicate::Reads* reads,
                   Crew* crew = nullptr) {
  auto proven = open_verified(fs, file.path, reads, crew);
  check_holds(file.name, proven.info.identity);
  return proven;
}

/// The whole steps of the job in a directory that are of another number of ranks, ascending.
std::vector<StepOnDisk> steps_of_others(FileSystem& fs, const std::filesystem::path& directory,
                                        const std::string& job, int world_size) {
  auto steps = list_steps_on_disk(fs, directory, job);
  std::erase_if(steps, [&](const StepOnDisk& step) { return step.world_size == world_size; });
  return steps;
}

}  // namespace

void Persistence::publish(const ImageInfo& info, std::span<const std::byte> image,
                          std::optional<int> writer, replicate::Reads* reads) const {
  make_private_directory(*fs_, directory_);
  const ImageIdentity& who = info.identity;
  PersistedName name{who.job, who.id, who.rank, who.world_size, writer.value_or(rank_)};
  if (name.holder == who.rank) name.holder.reset();
  const auto path = directory_ / to_file_name(name);
  if (holds(path, info, reads)) {
    fs_->sync_directory(directory_);  // whoever wrote it may have failed at this
    return;
  }
  replicate::Reads::Reading writing(reads, path.string(), "written");
  constexpr std::uint64_t kSyncEvery = std::uint64_t{16} << 20U;
  std::uint64_t unsynced = 0;
  publish_atomically(*fs_, path, [&](File& file) {
    const ImageInfo proven =
        read_proven(image, [&](std::span<const std::byte> piece, std::uint64_t offset) {
          write_fully(file, piece, offset);
          // A disk that is slow shows here, and not in one long sync() at the end.
          unsynced += piece.size();
          if (reads != nullptr && unsynced >= kSyncEvery) {
            file.sync();
            unsynced = 0;
          }
          writing.step(piece.size(), image.size());
        });
    if (proven != info) {
      throw make_error<CorruptData>(
          "the image is of " + to_string(proven.identity) + ", but was to be of " + to_string(who),
          who.rank, who.id.step);
    }
  });
}

std::vector<PersistedImage> Persistence::files_of(ImageId id, int owner, int world_size) const {
  auto files = list_names(*fs_, directory_, job_);
  std::erase_if(files, [&](const PersistedImage& file) {
    return file.name.id != id || file.name.rank != owner || file.name.world_size != world_size;
  });
  return files;
}

std::shared_ptr<const MappedFile> Persistence::sound_file(ImageId id, int owner,
                                                          int world_size) const {
  for (const auto& file : files_of(id, owner, world_size)) {
    try {
      return open_proven(*fs_, file, reads_).file;
    } catch (const Error&) {  // a later one may do
    }
  }
  return nullptr;
}

void Persistence::publish_in_recovery(const ImageInfo& info, std::span<const std::byte> image,
                                      int writer) const {
  {
    const MutexLock lock(mutex_);
    written_as_.insert(writer);
  }
  publish(info, image, writer, reads_);
}

bool Persistence::has_file(const ImageIdentity& image) const {
  return !files_of(image.id, image.rank, image.world_size).empty();
}

bool Persistence::is_shared_by_all() const {
  const MutexLock lock(mutex_);
  return sharing_.size() == static_cast<std::size_t>(world_size_);
}

std::uint64_t Persistence::room() const {
  auto at = directory_;  // not made before there is something to write
  while (at.has_relative_path() && !fs_->stat(at)) at = at.parent_path();
  return fs_->free_space(at).available;
}

bool Persistence::holds(const std::filesystem::path& path, const ImageInfo& info,
                        replicate::Reads* reads) const {
  if (!fs_->stat(path)) return false;
  try {
    return open_verified(*fs_, path, reads).info == info;
  } catch (const CorruptData&) {
    return false;
  } catch (const InvalidState&) {  // others may write it: no recovery would take it
    return false;
  }
}

void Persistence::enter(std::uint64_t generation) {
  leave();
  generation_ = 0;
  {
    const MutexLock lock(mutex_);
    sharing_.clear();
  }
  const replicate::Reads::Reading reading(reads_, directory_.string());
  if (!newest_own_image(*fs_, list_names(*fs_, directory_, job_))) return;
  generation_ = generation;
  presence_ = std::make_unique<Presence>(*fs_, directory_, job_, generation, rank_);
}

void Persistence::leave() { presence_.reset(); }

int Persistence::heir_of(int rank, const std::vector<int>& sharing) const {
  const int now = rank % world_size_;
  if (sharing.empty() || std::binary_search(sharing.begin(), sharing.end(), now)) return now;
  return sharing[static_cast<std::size_t>(now) % sharing.size()];
}

Persistence::Found Persistence::verify(ImageId newer_than,
                                       const std::function<void(const std::string&)>& complain,
                                       bool any_world, Crew* crew) {
  Found found;
  std::vector<int> sharing;
  std::optional<replicate::Reads::Reading> listing(std::in_place, reads_, directory_.string());
  if (generation_ != 0) {
    sharing = ranks_present(*fs_, directory_, job_, generation_);
    const auto here = std::lower_bound(sharing.begin(), sharing.end(), rank_);
    if (here == sharing.end() || *here != rank_) sharing.insert(here, rank_);
    const MutexLock lock(mutex_);
    sharing_ = sharing;
  }
  const auto is_mine = [&](const PersistedName& name) {
    if (name.rank == rank_ || name.writer() == rank_) return true;
    if (any_world && name.world_size != world_size_) return heir_of(name.rank, sharing) == rank_;
    const auto shares = [&](int rank) {
      return std::binary_search(sharing.begin(), sharing.end(), rank);
    };
    return name.world_size == world_size_ && !shares(name.rank) && !shares(name.writer()) &&
           heir_of(name.rank, sharing) == rank_;
  };
  const auto files = list_names(*fs_, directory_, job_, complain);
  if (const auto newest = newest_own_image(*fs_, files)) found.newest_named = newest->name.id;
  listing.reset();
  for (const auto& file : files) {
    if (!is_mine(file.name) || file.name.id <= newer_than) continue;
    // The same image may be there twice: as the owner's file and, in a shared directory, as a
    // holder's replica. A second one is read only if the first is damaged.
    const bool known = std::any_of(found.claims.begin(), found.claims.end(), [&](const auto& c) {
      return c.owner == file.name.rank && c.id == file.name.id;
    });
    if (known) continue;
    try {
      const auto [mapped, info] = open_proven(*fs_, file, reads_, crew);
      found.claims.push_back(protocol::claim_of(
          info, checked_loans(mapped->bytes(), info), rank_,
          info.identity.rank == rank_ ? protocol::Place::kOwnFile : protocol::Place::kHeldFile, 0));
      found.paths.push_back(file.path);
      const bool of_others = file.name.world_size != world_size_;
      found.of_others.push_back(of_others ? mapped : nullptr);
    } catch (const Error& e) {
      complain("ignoring " + file.path.string() + ": " + e.what());
    }
  }
  return found;
}

std::vector<protocol::OldStep> Persistence::old_steps() const {
  const replicate::Reads::Reading listing(reads_, directory_.string());
  std::vector<protocol::OldStep> steps;
  for (const auto& step : steps_of_others(*fs_, directory_, job_, world_size_)) {
    steps.push_back({step.id, step.world_size});
  }
  return steps;
}

protocol::OldStep Persistence::newest_old_step(
    const std::function<void(const std::string&)>& complain) const {
  replicate::FilesRead read(reads_);
  read(directory_, 0, 0);
  const auto steps = steps_of_others(*fs_, directory_, job_, world_size_);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    try {
      (void)read_step(*fs_, *step, job_, complain, std::ref(read));
      return {step->id, step->world_size};
    } catch (const CorruptData& e) {
      complain(e.what());
    }
  }
  return {};
}

std::uint64_t Persistence::highest_generation() const {
  const auto newest = newest_own_image(*fs_, list_names(*fs_, directory_, job_));
  return newest ? newest->name.id.generation : 0;
}

std::size_t Persistence::prune_older(ImageId than, std::size_t keep) const {
  std::vector<int> sharing;
  std::set<int> written_as;
  {
    const MutexLock lock(mutex_);
    sharing = sharing_;
    written_as = written_as_;
  }
  const auto removes = [&](int writer) {
    return heir_of(writer, sharing) == rank_ || written_as.contains(writer);
  };
  return prune(*fs_, directory_, job_, removes, than, keep);
}

}  // namespace meshstage
