// What page-locking does to others: to a trainer's kernels while it goes on, and to those who wait
// for the end of a process that has locked much.
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <thread>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/memory/mapping.hpp>
#include <meshstage/core/memory/resource.hpp>

#include "tools/bench/limits.hpp"
#include "tools/bench/locker.hpp"
#include "tools/device/device_state.hpp"
#include "tools/drill/rank_process.hpp"
#include "tools/drill/workspace.hpp"
#include "tools/process/process.hpp"

extern char** environ;

namespace meshstage::tools::bench {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::uint64_t kLaunched = 4096;  // bytes that one kernel copies
constexpr const char* kReady = "ready";
constexpr const char* kLocked = "locked";
constexpr const char* kLockFile = "lock";

std::uint64_t whole_pages(std::uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

double at(std::vector<double> seconds, double quantile) {
  if (seconds.empty()) return 0;
  std::sort(seconds.begin(), seconds.end());
  return seconds[static_cast<std::size_t>(static_cast<double>(seconds.size() - 1) * quantile)];
}

// Host memory whose pages are there already, so that locking it is nothing but locking.
class TouchedPages {
 public:
  explicit TouchedPages(std::uint64_t bytes)
      : pages_(static_cast<std::byte*>(host_memory().allocate(bytes, kPage)), bytes) {
    std::memset(pages_.data(), 1, pages_.size());
  }
  TouchedPages(const TouchedPages&) = delete;
  TouchedPages& operator=(const TouchedPages&) = delete;
  ~TouchedPages() { host_memory().deallocate(pages_.data(), pages_.size(), kPage); }
  [[nodiscard]] std::span<std::byte> pages() const { return pages_; }

 private:
  std::span<std::byte> pages_;
};

// The calls' seconds; quantiles of what was launched since the last time go to `parts`.
Samples take(Launcher& trainer, const std::string& name, std::map<std::string, double>& parts) {
  auto launches = trainer.take();
  parts[name + ": launch p99"] = at(launches.calls.seconds, 0.99);
  parts[name + ": launch most"] = launches.calls.most();
  parts[name + ": done p99"] = at(launches.done.seconds, 0.99);
  return std::move(launches.calls);
}

// The process that page-locks. It ends with this one.
class Locker {
 public:
  Locker(const std::string& what, const Options& options, const drill::Workspace& workspace)
      : process_(1,
                 {options.program,
                  {"bench", what, "--device", options.device, "--lock",
                   std::to_string(options.lock_bytes), "--vault", options.vault_directory.string(),
                   "--rank", "1", "--meet", workspace.path().string()},
                  environment(),
                  workspace.path() / "log"}) {}
  /// Waits for a line; calls `meanwhile`, if there is one, until it comes. Throws IoError if the
  /// process ends before.
  void expect(const char* line, const std::function<void()>& meanwhile = {}) {
    while (true) {
      for (const auto& found : process_.read_lines()) {
        if (found == line) return;
      }
      if (process_.report() < 0) throw IoError("the process that page-locks ended too soon");
      if (meanwhile) {
        meanwhile();
        continue;
      }
      pollfd wanted{process_.report(), POLLIN, 0};
      ::poll(&wanted, 1, 1000);
    }
  }
  void go_on() const { process_.send_signal(SIGUSR1); }
  [[nodiscard]] const drill::RankProcess& process() const { return process_; }
  void reap() {
    while (!process_.end()) static_cast<void>(process_.try_reap());
  }

 private:
  static std::vector<std::string> environment() {
    std::vector<std::string> all;
    for (char** one = environ; *one != nullptr; ++one) all.emplace_back(*one);
    return all;
  }
  drill::RankProcess process_;
};

Result start(const char* what, const Options& options, Device device) {
  Result result;
  result.what = what;
  result.workload = "page-locks";
  result.device = to_string(device);
  result.bytes = options.lock_bytes;
  return result;
}

std::filesystem::path pages_file(const Options& options, const std::filesystem::path& workspace) {
  return options.vault_directory / (workspace.filename().string() + ".pages");
}

struct RemovedAtEnd {
  std::filesystem::path file;
  ~RemovedAtEnd() {
    std::error_code ignored;
    std::filesystem::remove(file, ignored);
  }
};

// Seconds from the kill until the others can know: by the lock, the connection, the process' end.
std::array<double, 3> kill_and_wait(Locker& locker, const std::filesystem::path& lock_file) {
  const int lock = ::open(lock_file.c_str(), O_RDWR | O_CLOEXEC);
  if (lock < 0) throw_errno("open", lock_file.string(), errno);
  const Descriptor closes(lock);
  const auto pid = locker.process().pid();
  const int report = locker.process().report();
  std::array<std::int64_t, 3> noticed{};
  std::atomic<int> waiting = 0;
  const auto wait = [&](std::size_t i, const std::function<void()>& what) {
    return std::thread([&noticed, &waiting, i, what] {
      ++waiting;
      what();
      noticed.at(i) = now_ns();
    });
  };
  std::thread threads[] = {
      wait(0,
           [lock] {
             struct flock whole{};
             whole.l_type = F_WRLCK;
             while (::fcntl(lock, F_SETLKW, &whole) != 0 && errno == EINTR) {
             }
           }),
      wait(1,
           [report] {
             pollfd closed{report, 0, 0};
             while (::poll(&closed, 1, -1) < 0 && errno == EINTR) {
             }
           }),
      wait(2, [pid] {
        siginfo_t info{};
        while (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) != 0 &&
               errno == EINTR) {
        }
      })};
  while (waiting != 3) std::this_thread::yield();
  const auto killed = now_ns();
  locker.process().send_signal(SIGKILL);
  for (auto& thread : threads) thread.join();
  std::array<double, 3> seconds{};
  for (std::size_t i = 0; i < 3; ++i)
    seconds.at(i) = static_cast<double>(noticed.at(i) - killed) * 1e-9;
  return seconds;
}

}  // namespace

Result bench_launch(const Options& options, const Progress& progress) {
  const auto device = choose_device(options.device);
  auto result = start("launch", options, device);
  auto& parts = result.parts;
  const drill::Workspace workspace(options.directory);
  Launcher trainer(device, kLaunched);
  Locker locker("launch", options, workspace);
  locker.expect(kReady);
  const TouchedPages memory(whole_pages(options.lock_bytes));
  trainer.launch([] { return true; });  // the first launch of all
  std::map<std::string, double> unused;
  result.first_seconds = take(trainer, "first", unused).most();
  for (int i = 0; i < options.repeat; ++i) {
    progress("round " + std::to_string(i + 1) + " of " + std::to_string(options.repeat));
    int left = 3000;
    trainer.launch([&] { return --left == 0; });
    for (const double s : take(trainer, "quiet", parts).seconds) result.limit.add(s);
    std::atomic<bool> locked = false;
    std::exception_ptr error;
    std::thread locking([&] {
      try {
        std::vector<PinnedPages> pages;
        parts["locking"] = seconds_of([&] {
          auto& pinner = DeviceRuntime::of(device.type).pinner(device);
          const auto piece = options.piece_bytes == 0 ? options.lock_bytes : options.piece_bytes;
          for (auto rest = memory.pages(); !rest.empty();) {
            const auto now = rest.first(std::min<std::size_t>(rest.size(), whole_pages(piece)));
            pages.emplace_back(pinner, now);
            rest = rest.subspan(now.size());
          }
        });
      } catch (const Error&) {
        error = std::current_exception();
      }
      locked = true;
    });
    try {
      trainer.launch([&] { return locked.load(); });
    } catch (...) {
      locking.join();
      throw;
    }
    locking.join();
    if (error) std::rethrow_exception(error);
    for (const double s : take(trainer, "locking here", parts).seconds) result.times.add(s);
  }
  progress("another process locks");
  locker.go_on();
  locker.expect(kLocked, [&] {
    int left = 20;
    trainer.launch([&] { return --left == 0; });
  });
  static_cast<void>(take(trainer, "locking elsewhere", parts));
  return result;
}

Result bench_notice(const Options& options, const Progress& progress) {
  const auto device = choose_device(options.device);
  auto result = start("notice", options, device);
  const drill::Workspace workspace(options.directory);
  const RemovedAtEnd file{pages_file(options, workspace.path())};
  std::map<std::string, Samples> parts;
  for (const bool much : {false, true}) {
    auto asked = options;
    if (!much) asked.lock_bytes = kPage;
    for (int i = 0; i < options.repeat; ++i) {
      progress(std::string(much ? "" : "nothing locked, ") + "round " + std::to_string(i + 1) +
               " of " + std::to_string(options.repeat));
      Locker locker("notice", asked, workspace);
      parts[much ? "locked" : "limit: locked"].add(seconds_of([&] { locker.expect(kLocked); }));
      const auto [by_lock, by_connection, by_end] =
          kill_and_wait(locker, workspace.path() / kLockFile);
      locker.reap();
      const std::string of = much ? "" : "limit: ";
      parts[of + "lock free"].add(by_lock);
      parts[of + "process ended"].add(by_end);
      (much ? result.times : result.limit).add(by_connection);
    }
  }
  for (const auto& [name, samples] : parts) result.parts[name] = samples.median();
  return result;
}

void run_locker(const std::string& what, int report, const std::filesystem::path& directory,
                const Options& options) {
  const auto say = [report](const char* line) { ::dprintf(report, "%s\n", line); };
  sigset_t wanted;
  ::sigemptyset(&wanted);
  ::sigaddset(&wanted, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &wanted, nullptr);
  const auto bytes = whole_pages(options.lock_bytes);
  int signal = 0;
  if (what == "launch") {
    const auto device = choose_device(options.device);
    auto& pinner = DeviceRuntime::of(device.type).pinner(device);
    const TouchedPages memory(bytes);
    say(kReady);
    ::sigwait(&wanted, &signal);
    const PinnedPages pages(pinner, memory.pages());
    say(kLocked);
    return;
  }
  // As a rank does: first the lock that says who owns a vault, then the vault.
  const int lock = ::open((directory / kLockFile).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  struct flock whole{};
  whole.l_type = F_WRLCK;
  if (lock < 0 || ::fcntl(lock, F_SETLK, &whole) != 0) throw_errno("fcntl", kLockFile, errno);
  const Descriptor held(lock);
  const auto device = choose_device(options.device);
  const auto path = pages_file(options, directory);
  std::filesystem::remove(path);  // of the process before
  const auto file = real_file_system().open(path, OpenMode::kCreateExclusive);
  file->reserve(bytes);
  const Mapping mapping(*file, bytes, MapAccess::kReadWrite);
  const PinnedPages pages(DeviceRuntime::of(device.type).pinner(device), mapping.bytes());
  say(kLocked);
  ::sigwait(&wanted, &signal);  // until this process is killed
}

}  // namespace meshstage::tools::bench
