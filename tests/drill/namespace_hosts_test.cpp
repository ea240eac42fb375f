// Hosts as namespaces, by themselves: what a process of one sees.
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>

#include <meshstage/core/error/error.hpp>

#include "tests/drill/namespace_machine.hpp"
#include "tools/process/spawn.hpp"

namespace {

using drill_runs::TemporaryDirectory;
using meshstage::tools::exec_array;
using meshstage::tools::Pipe;
using meshstage::tools::SpawnSettings;
using namespace meshstage::tools::hosts;

/// What a shell on the host writes.
std::string on_host(const NamespaceHosts& hosts, int host, const std::string& script) {
  const Entry entry = hosts.entry(host);
  std::vector<std::string> words = entry.words;
  words.insert(words.end(), {"sh", "-c", script});
  Pipe out;
  SpawnSettings settings;
  ::posix_spawn_file_actions_adddup2(&settings.actions, out.write.get(), 1);
  pid_t pid = -1;
  {
    const EnterPidNamespace there(entry.pid_namespace);
    REQUIRE(::posix_spawnp(&pid, words.front().c_str(), &settings.actions, &settings.attributes,
                           exec_array(words).data(), environ) == 0);
  }
  out.write.reset();
  std::string text;
  std::array<char, 4096> buffer{};
  for (ssize_t n = 0; (n = ::read(out.read.get(), buffer.data(), buffer.size())) > 0;) {
    text.append(buffer.data(), static_cast<std::size_t>(n));
  }
  REQUIRE(::waitpid(pid, nullptr, 0) == pid);
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

NamespaceOptions two_hosts(const TemporaryDirectory& directory) {
  NamespaceOptions options;
  options.count = 2;
  options.folder = directory.path();
  options.memory = 1U << 20U;
  return options;
}

}  // namespace

TEST_CASE("A host has a name, an address, memory, processes and a boot id of its own") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const TemporaryDirectory directory;
  const NamespaceHosts hosts(two_hosts(directory));
  const auto both = [&](const std::string& script) {
    return std::pair{on_host(hosts, 0, script), on_host(hosts, 1, script)};
  };
  CHECK(both("hostname") == std::pair<std::string, std::string>{"host-0", "host-1"});
  CHECK(both("getent hosts host-1 | cut -d' ' -f1").first == "192.0.2.2");
  const auto boots = both("cat /proc/sys/kernel/random/boot_id");
  CHECK(boots.first != boots.second);
  CHECK(boots.first.size() == 36);
  CHECK(both("ls /dev/shm; echo mine > /dev/shm/file").first.empty());
  CHECK(both("cat /dev/shm/file").second == "mine");
  CHECK(std::filesystem::exists(hosts.shared_memory(1) / "file"));
  CHECK_FALSE(std::filesystem::exists("/dev/shm/file"));
  // No interface but loopback and the cable; no process but the first one, the shell, ls and wc.
  CHECK(both("grep -c : /proc/net/dev").first == "2");
  const int processes = std::stoi(both("ls -d /proc/[0-9]* | wc -l").first);
  CHECK(processes >= 1);
  CHECK(processes <= 4);
}

TEST_CASE("One host reaches another one by its name, and this machine's network by none") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const TemporaryDirectory directory;
  const NamespaceHosts hosts(two_hosts(directory));
  // bash opens a connection by itself; refused means that the host was reached.
  const std::string answer = on_host(hosts, 0, "bash -c ': > /dev/tcp/host-1/9' 2>&1");
  CHECK_THAT(answer, contains_text("Connection refused"));
  const std::string outside = on_host(hosts, 0, "bash -c ': > /dev/tcp/198.51.100.1/9' 2>&1");
  CHECK_THAT(outside, contains_text("Network is unreachable"));
}

TEST_CASE("A host that is lost takes its processes and memory, and comes back with its address") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const TemporaryDirectory directory;
  NamespaceHosts hosts(two_hosts(directory));
  (void)on_host(hosts, 1, "echo mine > /dev/shm/file");
  const std::string boot = on_host(hosts, 1, "cat /proc/sys/kernel/random/boot_id");
  // A process that a rank left behind. The host's shell ends once it runs: a process has no
  // command line for a moment while it becomes another program.
  const std::string left = directory.path() / "left-behind";
  const std::string started = directory.path() / "started";
  REQUIRE(::mkfifo(started.c_str(), 0600) == 0);
  (void)on_host(hosts, 1,
                "setsid sh -c 'echo > " + started + "; sleep 1000; : " + left +
                    "' > /dev/null 2>&1 & cat " + started);
  CHECK_FALSE(drill_runs::processes_with(left).empty());
  hosts.lose(1);
  CHECK(on_host(hosts, 1, "ls /dev/shm").empty());
  CHECK(on_host(hosts, 1, "cat /proc/sys/kernel/random/boot_id") != boot);
  CHECK_THAT(on_host(hosts, 0, "bash -c ': > /dev/tcp/host-1/9' 2>&1"),
             contains_text("Connection refused"));
  CHECK(drill_runs::processes_that_stay(left).empty());
}

TEST_CASE("A directory may be another one on each host") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const TemporaryDirectory directory;
  NamespaceOptions options = two_hosts(directory);
  options.disk = directory.path() / "disk";
  std::filesystem::create_directory(options.disk);
  for (const char* name : {"disk-0", "disk-1"}) {
    options.disks.push_back(directory.path() / name);
    std::filesystem::create_directory(options.disks.back());
  }
  NamespaceHosts hosts(options);
  (void)on_host(hosts, 1, "echo mine > " + (options.disk / "file").string());
  CHECK_FALSE(std::filesystem::exists(options.disk / "file"));
  CHECK(std::filesystem::exists(options.disks[1] / "file"));
  CHECK(on_host(hosts, 0, "ls " + options.disk.string()).empty());
  hosts.lose(1);
  CHECK(on_host(hosts, 1, "ls " + options.disk.string()) == "file");  // a disk stays
}

TEST_CASE("A host that was there and does not boot again is an error, and no lack of the machine") {
  MESHSTAGE_NEEDS_NAMESPACES();
  const TemporaryDirectory directory;
  NamespaceHosts hosts(two_hosts(directory));
  const auto boot_id = directory.path() / "host-1-boot-id";  // the host writes this file
  std::filesystem::remove(boot_id);
  std::filesystem::create_directory(boot_id);
  try {
    hosts.lose(1);
    FAIL("the host booted");
  } catch (const meshstage::IoError& e) {
    CHECK_THAT(e.what(), contains_text("host-1 was lost and cannot boot again: "));
  }
}
