#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace meshstage::fake_nccl {

using Bytes = std::vector<std::byte>;

/// The folder where the ranks of one communicator meet, as threads or processes: a file is there
/// whole or not at all.
class Rendezvous {
 public:
  /// Makes a new folder below the temporary directory and returns its path.
  static std::string make();

  Rendezvous(std::string path, int rank, int size);
  void put(const std::string& name, const Bytes& bytes) const;
  [[nodiscard]] std::optional<Bytes> get(const std::string& name) const;
  void remove(const std::string& name) const;
  /// Whether every rank has come.
  [[nodiscard]] bool complete() const;
  /// Whether the process of a rank that had come is dead.
  [[nodiscard]] bool lost_a_rank() const;
  /// This rank needs the folder no more; the last one removes it.
  void leave() const;

 private:
  std::string path_;
  int rank_;
  int size_;
};

}  // namespace meshstage::fake_nccl
