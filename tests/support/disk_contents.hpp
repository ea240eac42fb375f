// What lies on a disk in memory: kept, damaged, put back.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/os/memory_file_system.hpp>

namespace meshstage::test {

/// Bytes by path.
using Contents = std::map<std::string, std::vector<std::byte>>;

inline Contents read_all(MemoryFileSystem& disk, const std::string& directory) {
  Contents contents;
  for (const auto& name : disk.list(directory)) {
    const auto file = disk.open(directory + "/" + name, OpenMode::kRead);
    std::vector<std::byte> bytes(file->stat().size);
    (void)file->read_at(bytes, 0);
    contents[directory + "/" + name] = std::move(bytes);
  }
  return contents;
}

/// The directory holds these files again, and no others.
inline void put_back(MemoryFileSystem& disk, const std::string& directory,
                     const Contents& contents) {
  for (const auto& name : disk.list(directory)) disk.unlink(directory + "/" + name);
  for (const auto& [path, bytes] : contents) {
    const auto file = disk.open(path, OpenMode::kCreateExclusive);
    write_fully(*file, bytes, 0);
  }
}

inline void flip(MemoryFileSystem& disk, const std::string& path, std::uint64_t at) {
  const auto file = disk.open(path, OpenMode::kReadWrite);
  std::byte b{};
  (void)file->read_at(std::span(&b, 1), at);
  b ^= std::byte{0x20};
  write_fully(*file, std::span(&b, 1), at);
}

}  // namespace meshstage::test
