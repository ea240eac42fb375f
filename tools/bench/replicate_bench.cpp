// replicate_bench [WORKLOAD] ...: how long two ranks, each a process, take to stage a step and to
// have each other's replica (Checkpointer, Gloo over loopback, vaults in /dev/shm), and how near
// that comes to as many bytes sent both ways over one raw TCP connection in the same run.
// Medians of 9; GB = 1e9 bytes. Host memory: ten times the workload's bytes.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <meshstage/core/checkpoint/checkpointer.hpp>

#include "tests/support/temp_directory.hpp"
#include "tools/bench/workloads.hpp"

extern char** environ;

namespace {

using namespace meshstage;
using namespace std::chrono_literals;

constexpr int kRounds = 9;
constexpr std::size_t kBufferBytes = std::size_t{256} << 20U;

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

/// Both ends of one TCP connection over loopback; exec keeps them open.
std::array<int, 2> connected_pair() {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  if (listener < 0 || ::bind(listener, any, length) != 0 || ::listen(listener, 1) != 0 ||
      ::getsockname(listener, any, &length) != 0) {
    fail("listen");
  }
  const int there = ::socket(AF_INET, SOCK_STREAM, 0);
  if (there < 0 || ::connect(there, any, length) != 0) fail("connect");
  const int here = ::accept(listener, nullptr, nullptr);
  if (here < 0) fail("accept");
  ::close(listener);
  const int on = 1;
  for (const int fd : {here, there}) ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return {here, there};
}

void send_bytes(int fd, std::span<const std::byte> from, std::uint64_t bytes) {
  for (std::uint64_t at = 0; at < bytes;) {
    const auto in = at % from.size();
    const auto n = ::send(fd, from.data() + in,
                          std::min<std::uint64_t>(bytes - at, from.size() - in), MSG_NOSIGNAL);
    if (n <= 0) fail("send");
    at += static_cast<std::uint64_t>(n);
  }
}

void receive_bytes(int fd, std::span<std::byte> to, std::uint64_t bytes) {
  for (std::uint64_t at = 0; at < bytes;) {
    const auto in = at % to.size();
    const auto n =
        ::recv(fd, to.data() + in, std::min<std::uint64_t>(bytes - at, to.size() - in), 0);
    if (n <= 0) fail("recv");
    at += static_cast<std::uint64_t>(n);
  }
}

/// As many bytes each way at once, from and to memory that is there.
class RawTcp {
 public:
  explicit RawTcp(int fd) : fd_(fd) {
    std::memset(from_.data(), 1, kBufferBytes);
    std::memset(to_.data(), 2, kBufferBytes);
  }
  void exchange(std::uint64_t bytes) {
    std::exception_ptr error;
    std::thread sender([&] {
      try {
        send_bytes(fd_, from_.bytes(), bytes);
      } catch (const std::system_error&) {
        error = std::current_exception();
      }
    });
    try {
      receive_bytes(fd_, to_.bytes(), bytes);
    } catch (const std::system_error&) {
      ::shutdown(fd_, SHUT_RDWR);  // ends the sender, too
      sender.join();
      throw;
    }
    sender.join();
    if (error) std::rethrow_exception(error);
  }
  /// Both ranks are here.
  void meet() { exchange(1); }

 private:
  int fd_;
  Storage from_ = Storage::allocate(kBufferBytes), to_ = Storage::allocate(kBufferBytes);
};

void run_rank(int rank, int fd, const std::string& directory, const std::string& name) {
  CheckpointerOptions options;
  options.job = "replicate-bench-" + std::filesystem::path(directory).filename().string();
  options.directory = options.vault_directory = directory;
  options.persist_every = 0;
  options.store = "file:" + directory;
  options.environment.emplace();
  options.environment->rank = options.environment->local_rank = rank;
  options.environment->world_size = options.environment->local_world_size = 2;
  Dict state = bench::workload(name).value();
  RawTcp raw(fd);
  Checkpointer ckpt(options);
  (void)ckpt.recover(state);

  std::uint64_t step = 0;
  std::vector<double> stages, replicates, plain;
  const auto once = [&] {
    raw.meet();
    Staging staging;
    const auto begin = std::chrono::steady_clock::now();
    const auto stage = bench::seconds([&] {
      staging = ckpt.stage(state, ++step);
      staging.staged().wait();
    });
    if (staging.outcome().get() != Outcome::kComplete) throw std::runtime_error("a step failed");
    const std::chrono::duration<double> all = std::chrono::steady_clock::now() - begin;
    return std::pair{stage, all.count()};
  };
  const auto first = once();
  (void)once();  // the second pair of slots is fresh memory, too
  const auto bytes = ckpt.stats().image_bytes;
  for (int i = 0; i < kRounds; ++i) {  // in turns, so that the machine's drift meets all alike
    const auto [stage, replicate] = once();
    stages.push_back(stage);
    replicates.push_back(replicate);
    raw.meet();
    plain.push_back(bench::seconds([&] { raw.exchange(bytes); }));
  }
  if (rank == 0) {
    const double gb = static_cast<double>(bytes) / 1e9;
    const double stage = bench::median(stages), replicate = bench::median(replicates),
                 tcp = bench::median(plain);
    std::printf("%-9s %6.3f GB a rank, 2 ranks, both ways at once\n", name.c_str(), gb);
    std::printf("          stage %8.2f ms (%5.2f GB/s) | replicate %8.2f ms (%5.2f GB/s each way)",
                stage * 1e3, gb / stage, replicate * 1e3, gb / replicate);
    std::printf(" | the first time %8.2f ms\n", first.second * 1e3);
    std::printf("          raw TCP, the same bytes: %8.2f ms (%5.2f GB/s each way)", tcp * 1e3,
                gb / tcp);
    std::printf(" | replicate takes %.2f times that\n", replicate / tcp);
  }
  raw.meet();
  ckpt.finish();
}

/// Two processes of this program, one for each rank; whether both did well.
bool run_pair(const std::string& name) {
  const TempDirectory directory("/dev/shm");  // goes with all that is in it, however this ends
  const auto ends = connected_pair();
  std::array<pid_t, 2> ranks{};
  for (std::size_t rank = 0; rank < 2; ++rank) {
    std::array<std::string, 6> words{"replicate_bench",         "--rank",
                                     std::to_string(rank),      std::to_string(ends[rank]),
                                     directory.path().string(), name};
    std::array<char*, 7> argv{};
    for (std::size_t i = 0; i < words.size(); ++i) argv[i] = words[i].data();
    // Only the own end: else nobody sees the other's end of file.
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addclose(&actions, ends[1 - rank]);
    const int error =
        ::posix_spawn(&ranks[rank], "/proc/self/exe", &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (error != 0) throw std::system_error(error, std::generic_category(), "posix_spawn");
  }
  for (const int fd : ends) ::close(fd);
  bool good = true;
  for (const auto rank : ranks) {
    int status = 0;
    if (::waitpid(rank, &status, 0) != rank) fail("waitpid");
    good &= WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  return good;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc == 6 && std::string(argv[1]) == "--rank") {
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    run_rank(std::atoi(argv[2]), std::atoi(argv[3]), argv[4], argv[5]);
    return 0;
  }
  std::vector<std::string> names(argv + 1, argv + argc);
  if (names.empty()) names = {"gpt2", "small"};
  for (const auto& name : names) {
    if (!bench::workload(name)) {
      std::fprintf(stderr, "usage: replicate_bench [%s] ...\n", bench::kWorkloads);
      return 2;
    }
    if (!run_pair(name)) return 1;
  }
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "replicate_bench: %s\n", e.what());
  return 1;
}
