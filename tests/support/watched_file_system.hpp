#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/os/file_system.hpp>

namespace meshstage::test {

/// A file system that lets a test look at the names that files get, at the files that are mapped,
/// and at the room that there is.
class WatchedFileSystem final : public FileSystem {
 public:
  explicit WatchedFileSystem(FileSystem& inner) : inner_(inner) {}
  std::function<void(const Path& to)> on_rename = [](const Path&) {};  ///< Before it; may throw.
  /// The same, for each mapping of a file, on the thread that maps it.
  std::function<void(const Path&)> on_map = [](const Path&) {};
  std::function<void(const Path& to)> on_link = [](const Path&) {};  ///< After it.
  std::optional<std::uint64_t> room;                                 ///< Of FreeSpace::available,
  Path room_of = "/disk";                                            ///< of this directory.

  std::unique_ptr<File> open(const Path& path, OpenMode mode) override {
    return std::make_unique<WatchedFile>(*this, inner_.open(path, mode), path);
  }
  std::optional<FileStat> stat(const Path& path) override { return inner_.stat(path); }
  void rename(const Path& from, const Path& to) override {
    on_rename(to);
    inner_.rename(from, to);
  }
  void link(const Path& from, const Path& to) override {
    inner_.link(from, to);
    on_link(to);
  }
  bool unlink(const Path& path) override { return inner_.unlink(path); }
  std::vector<std::string> list(const Path& directory) override { return inner_.list(directory); }
  void make_directories(const Path& directory) override { inner_.make_directories(directory); }
  void sync_directory(const Path& directory) override { inner_.sync_directory(directory); }
  FreeSpace free_space(const Path& path) override {
    FreeSpace space = inner_.free_space(path);
    if (room && path == room_of) space.available = *room;
    return space;
  }
  ProcessIdentity process() override { return inner_.process(); }

 private:
  class WatchedFile final : public File {
   public:
    WatchedFile(WatchedFileSystem& fs, std::unique_ptr<File> inner, Path path)
        : fs_(fs), inner_(std::move(inner)), path_(std::move(path)) {}
    std::size_t read_at(std::span<std::byte> into, std::uint64_t offset) override {
      return inner_->read_at(into, offset);
    }
    std::size_t write_at(std::span<const std::byte> bytes, std::uint64_t offset) override {
      return inner_->write_at(bytes, offset);
    }
    void sync() override { inner_->sync(); }
    FileStat stat() override { return inner_->stat(); }
    void truncate(std::uint64_t size) override { inner_->truncate(size); }
    void reserve(std::uint64_t size) override { inner_->reserve(size); }
    bool reserve_huge(std::uint64_t from, std::uint64_t to) noexcept override {
      return inner_->reserve_huge(from, to);
    }
    std::unique_ptr<MappedRegion> map(std::uint64_t length, MapAccess access) override {
      fs_.on_map(path_);
      return inner_->map(length, access);
    }
    bool try_lock() override { return inner_->try_lock(); }
    std::optional<std::int64_t> lock_holder() override { return inner_->lock_holder(); }

   private:
    WatchedFileSystem& fs_;
    const std::unique_ptr<File> inner_;
    const Path path_;
  };
  FileSystem& inner_;
};

}  // namespace meshstage::test
