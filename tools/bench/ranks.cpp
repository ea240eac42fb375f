#include "tools/bench/ranks.hpp"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>
#include <sstream>

#include <nlohmann/json.hpp>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/listing.hpp>

#include "tools/drill/rank_process.hpp"
#include "tools/drill/workspace.hpp"
#include "tools/process/signals.hpp"

extern char** environ;

namespace meshstage::tools::bench {

/// In a file that every rank maps.
struct Seat::Shared {
  pthread_barrier_t barrier;
  std::array<std::uint16_t, kMostRanks> ports;
  std::array<double, kMostRanks> begins, ends;  // seconds of the clock that all ranks share
  unsigned word;
};

namespace {

constexpr std::size_t kSharedBytes = 4096;
constexpr const char* kSharedFile = "shared";
constexpr const char* kResult = "result ";

std::vector<std::string> arguments_of(const std::string& what, int rank, const Options& options,
                                      const std::filesystem::path& directory) {
  std::vector<std::string> arguments{"bench",      what,
                                     "--workload", options.workload,
                                     "--scale",    std::to_string(options.scale),
                                     "--threads",  std::to_string(options.threads),
                                     "--repeat",   std::to_string(options.repeat),
                                     "--vault",    options.vault_directory.string(),
                                     "--rank",     std::to_string(rank),
                                     "--meet",     directory.string()};
  const auto add = [&arguments](std::initializer_list<std::string> words) {
    arguments.insert(arguments.end(), words);
  };
  if (what == "reshard") {
    add({"--from", std::to_string(options.from), "--to", std::to_string(options.to)});
    if (options.files) add({"--files"});
    return arguments;
  }
  add({"--device", options.device, "--ranks", std::to_string(options.ranks), "--changed",
       std::to_string(options.changed), "--connections", std::to_string(options.connections)});
  if (options.snapshot) add({"--snapshot"});
  return arguments;
}

std::vector<std::string> this_environment() {
  std::vector<std::string> result;
  for (char** at = environ; *at != nullptr; ++at) result.emplace_back(*at);
  return result;
}

std::string last_lines(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  std::string text;
  for (std::size_t i = lines.size() - std::min<std::size_t>(lines.size(), 5); i < lines.size(); ++i)
    text += "\n  " + lines[i];
  return text;
}

Result decode(const std::string& text) {
  const auto json = nlohmann::json::parse(text);
  Result r;
  r.what = json.at("what");
  r.workload = json.at("workload");
  r.device = json.at("device");
  r.bytes = json.at("bytes");
  r.first_seconds = json.at("first_s");
  r.times.seconds = json.at("times").get<std::vector<double>>();
  r.limit.seconds = json.at("limits").get<std::vector<double>>();
  r.threads = json.at("threads");
  r.limit_threads = json.at("limit_threads");
  r.connections = json.at("connections");
  r.limit_connections = json.at("limit_connections");
  r.parts = json.at("parts").get<std::map<std::string, double>>();
  return r;
}

}  // namespace

std::string encode_result(const Result& r) {
  return kResult + nlohmann::json{{"what", r.what},
                                  {"workload", r.workload},
                                  {"device", r.device},
                                  {"bytes", r.bytes},
                                  {"first_s", r.first_seconds},
                                  {"times", r.times.seconds},
                                  {"limits", r.limit.seconds},
                                  {"threads", r.threads},
                                  {"limit_threads", r.limit_threads},
                                  {"connections", r.connections},
                                  {"limit_connections", r.limit_connections},
                                  {"parts", r.parts}}
                       .dump();
}

Result run_ranks(const std::string& what, const Options& options, const Progress& progress) {
  if (options.ranks < 2 || options.ranks > kMostRanks) {
    throw InvalidArgument("--ranks " + std::to_string(options.ranks) + ": 2 to " +
                          std::to_string(kMostRanks) + " can be measured");
  }
  Signals signals;  // before there is a thread
  const drill::Workspace workspace(options.directory);
  auto& fs = real_file_system();
  const auto file = fs.open(workspace.path() / kSharedFile, OpenMode::kCreateExclusive);
  file->reserve(kSharedBytes);
  const Mapping mapping(*file, kSharedBytes, MapAccess::kReadWrite);
  auto* const shared = new (mapping.bytes().data()) Seat::Shared{};
  pthread_barrierattr_t attributes;
  ::pthread_barrierattr_init(&attributes);
  ::pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  ::pthread_barrier_init(&shared->barrier, &attributes, static_cast<unsigned>(options.ranks));
  ::pthread_barrierattr_destroy(&attributes);

  std::vector<drill::RankProcess> ranks;
  ranks.reserve(static_cast<std::size_t>(options.ranks));
  for (int rank = 0; rank < options.ranks; ++rank) {
    ranks.emplace_back(
        rank,
        drill::ProcessPlan{options.program, arguments_of(what, rank, options, workspace.path()),
                           this_environment(), workspace.path() / ("log." + std::to_string(rank))});
  }
  std::optional<Result> result;
  for (std::size_t running = ranks.size(); running > 0;) {
    std::vector<pollfd> wanted{{signals.descriptor(), POLLIN, 0}};
    for (const auto& rank : ranks) wanted.push_back({rank.report(), POLLIN, 0});
    if (::poll(wanted.data(), wanted.size(), -1) < 0 && errno != EINTR)
      throw_errno("poll", "", errno);
    if (signals.take()) throw Cancelled("interrupted; all ranks were ended, nothing is left");
    for (auto& rank : ranks) {
      for (const auto& line : rank.read_lines()) {
        if (rank.rank() != 0) continue;
        if (line.starts_with(kResult)) {
          result = decode(line.substr(std::strlen(kResult)));
        } else {
          progress(line);
        }
      }
      if (rank.end()) continue;
      const auto end = rank.try_reap();
      if (!end) continue;
      --running;
      if (end->signalled || end->code != 0) {
        throw IoError("rank " + std::to_string(rank.rank()) + " ended with " + end->text() + ":" +
                      last_lines(rank.log()));
      }
    }
  }
  if (!result) throw IoError("the ranks ended without a result");
  return *result;
}

Seat::Seat(int rank, const std::filesystem::path& directory, const Options& options)
    : rank_(rank),
      ranks_(options.ranks),
      file_(real_file_system().open(directory / kSharedFile, OpenMode::kReadWrite)),
      mapping_(*file_, kSharedBytes, MapAccess::kReadWrite) {
  checkpointer_.job = directory.filename().string();  // as Workspace removes vaults by
  checkpointer_.directory = directory / "files";
  checkpointer_.vault_directory = options.vault_directory;
  checkpointer_.persist_every = 0;
  checkpointer_.copy_threads = options.threads;
  checkpointer_.connections = options.connections;
  if (options.snapshot) checkpointer_.snapshot = Snapshot::kAuto;
  checkpointer_.store = "file:" + (directory / "store").string();
  checkpointer_.environment.emplace();
  checkpointer_.environment->rank = checkpointer_.environment->local_rank = rank;
  checkpointer_.environment->world_size = checkpointer_.environment->local_world_size = ranks_;
  shared().ports.at(static_cast<std::size_t>(rank)) = tcp_.port();
  meet();
  const int holder = (rank + ranks_ / 2) % ranks_;
  tcp_.connect(shared().ports.at(static_cast<std::size_t>(holder)));
  meet();
}

Seat::Shared& Seat::shared() const {
  return *std::launder(reinterpret_cast<Shared*>(mapping_.bytes().data()));
}

void Seat::meet() { ::pthread_barrier_wait(&shared().barrier); }

unsigned Seat::agree(unsigned mine) {
  if (rank_ == 0) shared().word = mine;
  meet();
  const unsigned word = shared().word;
  meet();
  return word;
}

double Seat::together(const std::function<void()>& what) {
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  const auto at = static_cast<std::size_t>(rank_);
  const auto all = static_cast<std::size_t>(ranks_);
  auto& begins = shared().begins;
  auto& ends = shared().ends;
  meet();
  begins.at(at) = now();
  what();
  ends.at(at) = now();
  meet();
  const double seconds = *std::max_element(ends.begin(), ends.begin() + all) -
                         *std::min_element(begins.begin(), begins.begin() + all);
  meet();  // nobody changes them before all have read them
  return seconds;
}

unsigned fastest_together(Seat& seat, const std::function<void(unsigned)>& once, unsigned most) {
  return seat.agree(fastest(
      [&](unsigned n) {
        seat.meet();
        once(n);
      },
      most));
}

void Seat::lose_vault() const {
  for (const auto& vault : list_vaults(checkpointer_.vault_directory)) {
    if (vault.job == checkpointer_.job && vault.rank == rank_) remove_vault(vault);
  }
}

}  // namespace meshstage::tools::bench
