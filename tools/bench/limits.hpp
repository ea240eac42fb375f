#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/memory/mapping.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/tensor/storage.hpp>

#include "tools/bench/bench.hpp"
#include "tools/device/device_state.hpp"

namespace meshstage::tools::bench {

/// Threads and connections that limits are tried with.
inline constexpr std::array<unsigned, 5> kTried{1, 2, 4, 8, 16};

/// The fastest way to do one thing: `once(n)` with each n of kTried, three times each; the n with
/// the least median.
[[nodiscard]] unsigned fastest(const std::function<void(unsigned)>& once, unsigned most = 16);

/// Copies and digests of one block of warm memory, cut into equal parts for some threads.
class MemoryLimit {
 public:
  explicit MemoryLimit(std::uint64_t bytes);
  void copy(unsigned threads);
  void digest(unsigned threads);
  /// Whether every byte was copied, and every block digested alike.
  [[nodiscard]] bool copied() const;

 private:
  void each_part(unsigned threads, const std::function<void(std::uint64_t, std::uint64_t)>& part);
  std::uint64_t bytes_;
  Storage from_, to_;
  std::vector<std::uint64_t> digests_;
  Crew crew_{"bench", kTried.back()};
};

/// Making a slot larger, in a file of a vault's directory: the pages that it lacks, and this
/// process's way to all of them.
class SlotLimit {
 public:
  /// `had`: the bytes that an older slot has already; 0: the slot is new.
  SlotLimit(const std::filesystem::path& vault_directory, std::uint64_t had, std::uint64_t bytes);
  void grow();

 private:
  std::unique_ptr<File> file_;
  std::uint64_t had_, bytes_;
  Mapping mapping_;
};

/// Maps the files in the directory that end in ".safetensors", and digests part `part` of `parts`
/// of each, block by block. Returns the bytes digested.
std::uint64_t digest_files(const std::filesystem::path& directory, unsigned part, unsigned parts,
                           unsigned threads);

/// A copy of one block between a device's memory and page-locked host memory, or within the device
/// (that takes a second block there, from the first time on).
class DeviceLimit {
 public:
  DeviceLimit(Device device, std::uint64_t bytes);
  void copy(CopyDirection direction);

 private:
  PinnedBlock host_;
  Device device_;
  std::shared_ptr<std::byte> block_, second_block_;
  std::uint64_t bytes_;
  DeviceStream stream_;
};

/// A trainer that launches one kernel after the other. A kernel copies `bytes` inside the device.
class Launcher {
 public:
  Launcher(Device device, std::uint64_t bytes);
  /// Launches until `over()` is true; at least once.
  void launch(const std::function<bool()>& over);
  struct Launches {
    Samples calls;  ///< Of the launching alone.
    Samples done;   ///< Until the kernel was done.
  };
  /// What was launched since the last take().
  [[nodiscard]] Launches take() { return std::exchange(launches_, {}); }

 private:
  std::uint64_t bytes_;
  std::shared_ptr<std::byte> memory_;
  DeviceStream stream_;
  Launches launches_;
};

/// Raw TCP to the rank that holds our images and from the rank whose images we hold: several
/// connections, from and to warm memory.
class TcpRing {
 public:
  /// `listen`: what others connect to. Throws IoError.
  TcpRing();
  ~TcpRing();
  TcpRing(const TcpRing&) = delete;
  TcpRing& operator=(const TcpRing&) = delete;
  [[nodiscard]] std::uint16_t port() const { return port_; }
  /// Connects to the holder's port, and accepts as many. Collective.
  void connect(std::uint16_t holder_port);
  /// Sends so many bytes and receives as many, at once, over the first `connections`.
  void exchange(std::uint64_t bytes, unsigned connections);

 private:
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::vector<int> out_, in_;
  Storage from_, to_;
};

}  // namespace meshstage::tools::bench
