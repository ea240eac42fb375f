#include <meshstage/core/replicate/reads.hpp>

#include <algorithm>
#include <utility>

namespace meshstage::replicate {

Reads::Reading::Reading(Reads* reads, std::string path, const char* verb) : reads_(reads) {
  if (reads_ == nullptr) return;
  bool unwatched = false;
  {
    const MutexLock lock(reads_->mutex_);
    entry_ = reads_->entries_.insert(reads_->entries_.end(),
                                     {std::move(path), verb, 0, 0, Clock::now()});
    unwatched = reads_->begun_ && !std::exchange(reads_->watched_, true);
  }
  if (!unwatched) return;
  try {
    reads_->begun_();
  } catch (...) {  // no memory: this object will not be there
    const MutexLock lock(reads_->mutex_);
    reads_->entries_.erase(entry_);
    reads_->watched_ = false;
    throw;
  }
}

Reads::Reading::~Reading() {
  if (reads_ == nullptr) return;
  const MutexLock lock(reads_->mutex_);
  reads_->entries_.erase(entry_);
}

void Reads::Reading::step(std::uint64_t bytes, std::uint64_t of) {
  if (reads_ == nullptr) return;
  const auto now = Clock::now();
  const MutexLock lock(reads_->mutex_);
  entry_->bytes += bytes;
  if (of != 0) entry_->of = of;
  entry_->at = now;
}

std::optional<Reads::Slowest> Reads::slowest() const {
  const MutexLock lock(mutex_);
  const auto it = std::min_element(entries_.begin(), entries_.end(),
                                   [](const auto& a, const auto& b) { return a.at < b.at; });
  if (it == entries_.end()) return std::nullopt;
  return Slowest{it->path, it->verb, it->bytes, it->of, Clock::now() - it->at};
}

bool Reads::still_watched() {
  const MutexLock lock(mutex_);
  watched_ = !entries_.empty();
  return watched_;
}

std::string how_far(const Reads::Slowest& reading) {
  const std::string of = reading.of == 0 ? "" : " of " + std::to_string(reading.of);
  return std::to_string(reading.bytes) + of + " bytes";
}

void FilesRead::operator()(const std::filesystem::path& file, std::uint64_t bytes,
                           std::uint64_t of) {
  auto& before = before_[file];
  if (!reading_ || file != file_) {
    reading_.reset();
    file_ = file;
    reading_.emplace(reads_, file.string());
    reading_->step(before);
  }
  before += bytes;
  reading_->step(bytes, of);
}

void read_pages(std::span<const std::byte> bytes, Reads::Reading& reading) {
  constexpr std::size_t kPage = 4096;
  constexpr std::size_t kStep = 256 * kPage;
  for (std::size_t begin = 0; begin < bytes.size(); begin += kStep) {
    const auto part = bytes.subspan(begin, std::min(kStep, bytes.size() - begin));
    for (std::size_t at = 0; at < part.size(); at += kPage) {
      static_cast<void>(*static_cast<const volatile std::byte*>(&part[at]));
    }
    reading.step(part.size());
  }
}

}  // namespace meshstage::replicate
