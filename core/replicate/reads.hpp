#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <string>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage::replicate {

/// The images and files that this rank reads for a recovery at this moment, and since when nothing
/// of them has come. A slow disk is no dead one: while pieces come, the other ranks wait.
/// Threads: any.
class MESHSTAGE_API Reads {
 public:
  using Clock = Deadline::Clock;

  /// One thing that a thread reads, or writes, from construction to destruction.
  class MESHSTAGE_API Reading {
   public:
    /// `path`: the file, or in words the slot. `verb`: "read" or "written". With null `reads`
    /// nobody watches it.
    Reading(Reads* reads, std::string path, const char* verb = "read");
    Reading(const Reading&) = delete;
    Reading& operator=(const Reading&) = delete;
    ~Reading();
    /// `bytes` more came, or one of several calls returned; there are `of` in all, if that is known
    /// (0: as before).
    void step(std::uint64_t bytes = 0, std::uint64_t of = 0);

   private:
    friend class Reads;
    struct Entry {
      std::string path;
      const char* verb;
      std::uint64_t bytes = 0, of = 0;
      Clock::time_point at;
    };
    Reads* const reads_;
    std::list<Entry>::iterator entry_;
  };

  /// The reading of which nothing has come for longest.
  struct Slowest {
    std::string path;
    const char* verb = "read";
    std::uint64_t bytes = 0;  ///< So many came,
    std::uint64_t of = 0;     ///< of so many; 0: not known.
    Clock::duration silence{};
  };
  [[nodiscard]] std::optional<Slowest> slowest() const;

  /// The thread that reads calls `begun` when a reading begins while nobody watches. From then on
  /// the caller watches, until still_watched() returns false. Set `begun` at most once, before any
  /// reading.
  void when_begun(std::function<void()> begun) { begun_ = std::move(begun); }
  /// True if something is being read. If false, the watching is over.
  [[nodiscard]] bool still_watched();

 private:
  mutable Mutex mutex_;
  std::function<void()> begun_;
  std::list<Reading::Entry> entries_ MESHSTAGE_GUARDED_BY(mutex_);
  bool watched_ MESHSTAGE_GUARDED_BY(mutex_) = false;
};

/// "1,234 of 5,678 bytes" without the commas, or "1234 bytes".
[[nodiscard]] MESHSTAGE_API std::string how_far(const Reads::Slowest& reading);

/// The readings of files, one at a time, for a call that reports each file when it opens it and
/// each piece of it (`bytes`) that it has read. It may go back to a file.
class MESHSTAGE_API FilesRead {
 public:
  explicit FilesRead(Reads* reads) : reads_(reads) {}
  void operator()(const std::filesystem::path& file, std::uint64_t bytes, std::uint64_t of);

 private:
  Reads* const reads_;
  std::filesystem::path file_;
  std::map<std::filesystem::path, std::uint64_t> before_;  ///< Bytes of the files left so far.
  std::optional<Reads::Reading> reading_;
};

/// Reads a byte of each page of a mapped file, so that the next reader of these bytes does not wait
/// for the disk.
MESHSTAGE_API void read_pages(std::span<const std::byte> bytes, Reads::Reading& reading);

}  // namespace meshstage::replicate
