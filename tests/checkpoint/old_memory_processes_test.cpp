// Another number of ranks, as real processes that are killed.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>

#include "tests/support/catch.hpp"
#include "tests/support/changing_job.hpp"
#include "tests/support/temp_directory.hpp"

namespace ms = meshstage;
using namespace meshstage::test;

namespace {

/// Each rank a child of this process. `body` throws what is wrong. A child whose body has come to
/// its end waits to be killed, with what the body keeps, once all have. Returns errors by rank.
class Processes {
 public:
  using Body = std::function<void(ms::CheckpointerOptions, const std::function<void()>& at_end)>;
  /// Rank r sits on host r % `hosts`, each of which has a disk and vaults of its own.
  explicit Processes(std::filesystem::path path, int hosts = 1)
      : path_(std::move(path)), hosts_(hosts) {
    for (int host = 0; host < hosts_; ++host) {
      std::filesystem::create_directories(vaults_of(host));
      std::filesystem::permissions(vaults_of(host), std::filesystem::perms::owner_all);
    }
  }
  [[nodiscard]] std::filesystem::path vaults_of(int host) const {
    return path_ / ("vault" + std::to_string(host));
  }

  std::vector<std::string> run(int world, const Body& body) {
    struct Child {
      pid_t pid = -1;
      int pipe = -1;
    };
    std::vector<Child> children;
    for (int rank = 0; rank < world; ++rank) {
      std::array<int, 2> ends{};
      if (::pipe(ends.data()) != 0) throw std::runtime_error("pipe");
      const pid_t pid = ::fork();
      if (pid == 0) {
        ::close(ends[0]);
        be_rank(rank, world, body, ends[1]);
      }
      ::close(ends[1]);
      children.push_back({pid, ends[0]});
    }
    std::vector<std::string> errors;
    for (const Child& child : children) errors.push_back(read_text(child.pipe));
    for (const Child& child : children) {
      if (child.pid > 0) ::kill(child.pid, SIGKILL);
      ::waitpid(child.pid, nullptr, 0);
      ::close(child.pipe);
    }
    return errors;
  }

 private:
  [[noreturn]] void be_rank(int rank, int world, const Body& body, int pipe) const {
    const auto tell = [pipe](const std::string& text) {
      (void)!::write(pipe, text.c_str(), text.size() + 1);
      while (true) ::pause();
    };
    try {
      ms::CheckpointerOptions o;
      o.job = "killed";
      o.directory = path_ / ("disk" + std::to_string(rank % hosts_));
      o.vault_directory = vaults_of(rank % hosts_);
      o.store = (path_ / "store").string();
      ms::RankEnvironment environment;
      environment.rank = environment.local_rank = rank;
      environment.world_size = environment.local_world_size = world;
      o.environment = environment;
      o.block_bytes = 4096;
      o.log = [](const ms::LogLine&) {};
      o.any_world = any_number();
      body(std::move(o), [&] { tell(""); });
    } catch (const std::exception& e) {
      tell(e.what());
    }
    ::_exit(1);
  }
  /// Up to a zero; waits for a minute.
  static std::string read_text(int pipe) {
    std::string text;
    pollfd end{pipe, POLLIN, 0};
    char c = 0;
    while (::poll(&end, 1, 60'000) == 1 && ::read(pipe, &c, 1) == 1) {
      if (c == '\0') return text;
      text.push_back(c);
    }
    return "no answer";
  }

  std::filesystem::path path_;
  int hosts_;
};

}  // namespace

TEST_CASE("4 processes that are killed come back as 3, and those as 2, from memory") {
  const TempDirectory directory;
  const int hosts = GENERATE(1, 2);
  INFO(hosts << " hosts");
  Processes processes(directory.path(), hosts);
  const auto train = [](std::uint64_t from, std::uint64_t to) {
    return [from, to](ms::CheckpointerOptions o, const std::function<void()>& at_end) {
      ms::Checkpointer ckpt(std::move(o));
      begin_or_go_on(ckpt, from);
      for (std::uint64_t step = from + 1; step <= to; ++step) stage_exactly(ckpt, step);
      at_end();
    };
  };
  all_good(processes.run(4, train(0, 3)));
  all_good(processes.run(3, train(3, 5)));
  all_good(processes.run(2, [](ms::CheckpointerOptions o, const std::function<void()>& at_end) {
    ms::Checkpointer ckpt(std::move(o));
    (void)recover_exactly(ckpt, 5);
    ckpt.finish();
    at_end();
  }));
  for (int host = 0; host < hosts; ++host) {
    CHECK(std::filesystem::is_empty(processes.vaults_of(host)));
  }
}
