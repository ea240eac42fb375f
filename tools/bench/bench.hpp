#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <meshstage/core/tree/value.hpp>

/// What `meshstage bench` measures, as functions: each takes Options and returns a Result. Every
/// one measures its limit, the same bytes moved by nothing but copies, digests, sockets and writes,
/// in the same run and in turns, so that the machine's drift meets both alike.
namespace meshstage::tools::bench {

struct Options {
  std::string workload = "gpt2";
  double scale = 1;            ///< Of the workload's bytes; for tests.
  std::string device = "cpu";  ///< Where the state is: cpu, cuda, cuda:1. Not for persist.
  int ranks = 2;               ///< Processes, each a rank. Only for replicate and recover.
  int from = 2, to = 1;        ///< Ranks of the old and of the new job. Only for reshard.
  bool files = false;          ///< The old job wrote its step to disk. Only for reshard.
  double changed = 1;    ///< Fraction of the state's bytes that change from one step to the next.
  unsigned threads = 0;  ///< That copy; 0: by the library's default.
  unsigned connections = 0;  ///< Of a pair of ranks for images; 0: by the library's default.
  std::uint64_t lock_bytes = std::uint64_t{1} << 30U;  ///< Only for launch and notice.
  std::uint64_t piece_bytes = 0;  ///< Only for launch: locked by one call; 0: all of them.
  bool snapshot = false;          ///< Of a state on a device: Snapshot::kAuto.
  int repeat = 9;                 ///< How often, after one time that is reported by itself.
  std::filesystem::path vault_directory = "/dev/shm";
  std::filesystem::path directory;  ///< Where persist writes. Empty: the temporary directory.
  std::filesystem::path program = "/proc/self/exe";  ///< Starts the ranks.
};

/// Seconds of one thing, several times.
struct Samples {
  std::vector<double> seconds;
  void add(double s) { seconds.push_back(s); }
  [[nodiscard]] double least() const;
  [[nodiscard]] double median() const;
  [[nodiscard]] double most() const;
};

struct Result {
  std::string what, workload;
  std::string device = "cpu";  ///< Where the state is.
  std::uint64_t bytes = 0;     ///< Of the state's storages, each once; in each rank.
  double first_seconds = 0;
  Samples times, limit;
  unsigned threads = 0;            ///< That copied.
  unsigned limit_threads = 0;      ///< That copied fastest in the limit; 0: nothing was copied.
  unsigned connections = 0;        ///< Of a pair of ranks for images; 0: none.
  unsigned limit_connections = 0;  ///< That were fastest in the limit.
  std::map<std::string, double> parts;  ///< Medians, seconds: where the time goes.
};

/// Called before each round: "round 3 of 9".
using Progress = std::function<void(const std::string&)>;
/// That line, for round i from 0.
inline std::string round_text(int i, int repeat) {
  return "round " + std::to_string(i + 1) + " of " + std::to_string(repeat);
}

/// StateDictStager::stage() against one streaming copy of as many bytes; of a state on a device,
/// against one copy of as many bytes from the device to page-locked memory.
[[nodiscard]] Result bench_stage(const Options& options, const Progress& progress);
/// Checkpointer::stage() until every rank agrees, against a copy (from a device: page-locked), a
/// digest at each end and the same bytes over raw TCP both ways.
[[nodiscard]] Result bench_replicate(const Options& options, const Progress& progress);
/// A rank that lost its memory comes back from its holder, against the bytes over raw TCP, and, of
/// a state on a device, one copy of them from page-locked memory to it.
[[nodiscard]] Result bench_recover(const Options& options, const Progress& progress);
/// A job goes on with another number of ranks, its state cut over all of them: recover() of the new
/// ranks, against copy and digest of a new rank's bytes and, of several new ranks, their replicas
/// over raw TCP. All ranks share one directory, so no old image travels. Without `files` recover()
/// writes the old images as durable files first, which is no part of the limit.
[[nodiscard]] Result bench_reshard(const Options& options, const Progress& progress);
/// An image published as a file, durable, against one plain write and sync of as many bytes.
[[nodiscard]] Result bench_persist(const Options& options, const Progress& progress);

/// The time that launching a kernel takes while page-locking goes on, against the same without:
/// in this process (the result) and in another (parts).
[[nodiscard]] Result bench_launch(const Options& options, const Progress& progress);
/// The time from a SIGKILL until a peer notices it by the closed connection, of a process with
/// page-locked memory, against one with next to none. Parts: by its file lock, and by its end.
[[nodiscard]] Result bench_notice(const Options& options, const Progress& progress);

/// What the rank processes of replicate, recover and reshard run. `directory` is where they meet;
/// progress and rank 0's result are lines on the descriptor `report`.
void run_rank(const std::string& what, int rank, int report, const std::filesystem::path& directory,
              const Options& options);

/// One line of JSON: {"what","workload","bytes","s":[min,median,max],...}; tools/bench/README.md
/// names the fields.
[[nodiscard]] std::string to_json(const Result& result);
/// The same for people, a few lines.
[[nodiscard]] std::string to_text(const Result& result);

/// The names that make_workload() knows.
inline constexpr const char* kWorkloads = "gpt2, gpt2-half, small, mid, big, FILE.safetensors";
/// gpt2: GPT-2's weights and AdamW's moments, F32, 1.49 GB; gpt2-half: half as many layers and half
/// the vocabulary, 0.75 GB; small: 10,000 tensors of 4 KiB; mid: 256 of 4 MiB; big: one of 1 GiB;
/// FILE.safetensors: its tensors. `scale` makes the named ones smaller. Throws InvalidArgument for
/// another name, and what reading the file throws.
[[nodiscard]] Dict make_workload(const std::string& name, double scale = 1);

/// Changes a state dict from step to step.
class Changes {
 public:
  /// `fraction` of the bytes, the first ones, change at each step: one word in each page of them.
  Changes(const Dict& state, double fraction);
  void step();
  [[nodiscard]] std::uint64_t state_bytes() const { return state_bytes_; }

 private:
  std::vector<Storage> storages_;  // distinct
  std::uint64_t state_bytes_ = 0, changing_ = 0, steps_ = 0;
};

double seconds_of(const std::function<void()>& what);

}  // namespace meshstage::tools::bench
