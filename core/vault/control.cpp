#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/control_impl.hpp>

#include <array>
#include <atomic>
#include <cstring>
#include <span>
#include <string>

namespace meshstage::detail {

namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::uint64_t kMagic = 0x0a0d4c525443534dU;  // "MSCTRL\r\n"
constexpr std::uint64_t kVersion = 1;

// In words of 8 bytes.
constexpr std::size_t kMagicAt = 0;
constexpr std::size_t kVersionAt = 1;
constexpr std::size_t kNewestAt = 2;
constexpr std::size_t kGenerationAt = 3;
constexpr std::size_t kEpochAt = 4;
constexpr std::size_t kJoinedAt = 5;
constexpr std::size_t kEnteredAt = 6;
constexpr std::size_t kOwnersAt = 8;
constexpr std::size_t kOwnerWords = 4;
constexpr std::size_t kOwners = (kPageBytes / 8 - kOwnersAt) / kOwnerWords;

std::size_t owner_at(std::uint64_t incarnation) {
  return kOwnersAt + static_cast<std::size_t>(incarnation % kOwners) * kOwnerWords;
}

}  // namespace

std::unique_ptr<File> open_private(FileSystem& fs, const std::filesystem::path& path) {
  auto file = fs.open(path, OpenMode::kReadWrite);
  const FileStat stat = file->stat();
  const std::uint32_t uid = fs.process().uid;
  constexpr std::uint32_t kOthers = 077;
  if (stat.uid != uid || (stat.mode & kOthers) != 0) {
    throw make_error<InvalidState>(
        path.native() + " belongs to user " + std::to_string(stat.uid) +
            (stat.uid == uid ? " but is open to others" : ", not to user " + std::to_string(uid)) +
            "; remove it or name another vault directory",
        {}, {}, path.native());
  }
  return file;
}

std::filesystem::path temporary_path(const std::filesystem::path& path,
                                     const ProcessIdentity& process) {
  return path.native() + ".tmp-" + std::to_string(process.pid) + "-" +
         std::to_string(process.instance);
}

ControlPage::ControlPage(File& file) {
  // Left to forked children: a child's copy of a Vault looks here before it refuses.
  mapping_ = Mapping(file, kPageBytes, MapAccess::kReadWrite, true);
}

std::optional<ControlPage> ControlPage::open(FileSystem& fs, const std::filesystem::path& path) {
  std::unique_ptr<File> file;
  try {
    file = open_private(fs, path);
  } catch (const SystemError& e) {
    if (is_missing(e)) return std::nullopt;
    throw;
  }
  const bool whole = file->stat().size == kPageBytes;
  std::optional<ControlPage> page;
  if (whole) page = ControlPage(*file);
  if (!whole || page->load(kMagicAt) != kMagic || page->load(kVersionAt) != kVersion) {
    throw make_error<CorruptData>(
        path.native() +
            " is not a control page of this version; end the job's processes and "
            "remove it, the slots stay",
        {}, {}, path.native());
  }
  return page;
}

ControlPage ControlPage::open_or_create(FileSystem& fs, const std::filesystem::path& path) {
  constexpr int kRounds = 100;  // each that is lost was won by another process
  for (int round = 0; round < kRounds; ++round) {
    if (auto page = open(fs, path)) return std::move(*page);
    const auto temporary = temporary_path(path, fs.process());
    fs.unlink(temporary);  // left by an attempt of ours that failed half-way
    const auto file = fs.open(temporary, OpenMode::kCreateExclusive);
    try {
      file->reserve(kPageBytes);
      const std::array<std::uint64_t, 2> start{kMagic, kVersion};
      write_fully(*file, std::as_bytes(std::span(start)), 0);
      fs.link(temporary, path);
    } catch (const SystemError& e) {
      fs.unlink(temporary);
      // Another process made it first, or took our temporary file for a dead attempt's.
      if (e.error_number() != EEXIST && !is_missing(e)) throw;
      continue;
    }
    fs.unlink(temporary);
  }
  throw SystemError("open", path.native(), ENOENT);
}

std::uint64_t ControlPage::load(std::size_t word) const {
  auto* const words = reinterpret_cast<std::uint64_t*>(mapping_.bytes().data());
  return std::atomic_ref(words[word]).load(std::memory_order_acquire);
}

void ControlPage::store(std::size_t word, std::uint64_t value) {
  auto* const words = reinterpret_cast<std::uint64_t*>(mapping_.bytes().data());
  std::atomic_ref(words[word]).store(value, std::memory_order_release);
}

bool ControlPage::raise(std::size_t word, std::uint64_t value) {
  auto* const words = reinterpret_cast<std::uint64_t*>(mapping_.bytes().data());
  const std::atomic_ref at(words[word]);
  std::uint64_t there = at.load();
  while (there < value) {
    if (at.compare_exchange_weak(there, value)) return true;
  }
  return false;
}

std::uint64_t ControlPage::newest() const { return load(kNewestAt); }
void ControlPage::raise_newest(std::uint64_t incarnation) { raise(kNewestAt, incarnation); }
std::uint64_t ControlPage::epoch() const { return load(kEpochAt); }
bool ControlPage::raise_epoch(std::uint64_t epoch) { return raise(kEpochAt, epoch); }
std::uint64_t ControlPage::generation() const { return load(kGenerationAt); }
bool ControlPage::raise_generation(std::uint64_t generation) {
  return raise(kGenerationAt, generation);
}
std::uint64_t ControlPage::joined() const { return load(kJoinedAt); }
void ControlPage::set_joined(std::uint64_t instance) { store(kJoinedAt, instance); }
std::uint64_t ControlPage::entered() const { return load(kEnteredAt); }
void ControlPage::set_entered(std::uint64_t generation) { store(kEnteredAt, generation); }

std::optional<VaultOwner> ControlPage::owner(std::uint64_t incarnation) const {
  const std::size_t at = owner_at(incarnation);
  VaultOwner owner;
  owner.incarnation = load(at);
  if (owner.incarnation != incarnation) return std::nullopt;
  owner.pid = static_cast<std::int64_t>(load(at + 1));
  owner.start_time = load(at + 2);
  owner.instance = load(at + 3);
  return owner;
}

void ControlPage::set_owner(const VaultOwner& owner) {
  const std::size_t at = owner_at(owner.incarnation);
  store(at + 1, static_cast<std::uint64_t>(owner.pid));
  store(at + 2, owner.start_time);
  store(at + 3, owner.instance);
  store(at, owner.incarnation);
}

std::optional<VaultOwner> ControlPage::owned_by(const ProcessIdentity& process) const {
  for (std::uint64_t i = 0; i < kOwners; ++i) {
    const std::uint64_t incarnation = load(owner_at(i));
    if (incarnation == 0) continue;
    const auto entry = owner(incarnation);
    if (entry && entry->pid == process.pid && entry->instance == process.instance) return entry;
  }
  return std::nullopt;
}

}  // namespace meshstage::detail
