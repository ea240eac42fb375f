#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/memory/mapping.hpp>

#include "tools/bench/bench.hpp"
#include "tools/bench/limits.hpp"

namespace meshstage::tools::bench {

/// Most ranks of one run.
inline constexpr int kMostRanks = 64;

/// Starts a process for each rank, waits for all, and returns what rank 0 measured. If one fails
/// the others are ended. Throws IoError with the end of that rank's output, and Cancelled after
/// SIGINT or SIGTERM; nothing is left then.
[[nodiscard]] Result run_ranks(const std::string& what, const Options& options,
                               const Progress& progress);

/// Rank 0's last line.
[[nodiscard]] std::string encode_result(const Result& result);

/// A rank's process among the others: a barrier, raw TCP, and a Checkpointer's options.
class Seat {
 public:
  /// Collective.
  Seat(int rank, const std::filesystem::path& directory, const Options& options);

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int ranks() const { return ranks_; }
  [[nodiscard]] TcpRing& tcp() { return tcp_; }
  [[nodiscard]] const CheckpointerOptions& checkpointer() const { return checkpointer_; }
  /// Returns when every rank called it.
  void meet();
  /// Returns rank 0's `mine`, to every rank. Collective.
  unsigned agree(unsigned mine);
  /// Seconds from when the first rank begins `what` until the last one has done it. Not by one
  /// rank's clock alone: where ranks share processors, others may be done before that rank runs.
  /// Collective.
  [[nodiscard]] double together(const std::function<void()>& what);
  /// Removes what this rank has in host memory, as the loss of its host does.
  void lose_vault() const;

 private:
  struct Shared;
  friend Result run_ranks(const std::string&, const Options&, const Progress&);
  [[nodiscard]] Shared& shared() const;
  int rank_, ranks_;
  CheckpointerOptions checkpointer_;
  std::unique_ptr<File> file_;
  Mapping mapping_;
  TcpRing tcp_;
};

/// The fastest of the numbers tried, by rank 0's clock; all ranks begin `once` together.
/// Collective.
unsigned fastest_together(Seat& seat, const std::function<void(unsigned)>& once, unsigned most);

/// What each rank of bench_reshard() runs. Collective.
void reshard(Seat& seat, const Options& options,
             const std::function<void(const std::string& line)>& report);

}  // namespace meshstage::tools::bench
