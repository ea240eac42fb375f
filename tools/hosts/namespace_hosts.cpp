#include "tools/hosts/namespace_hosts.hpp"

#include <fcntl.h>
#include <sched.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include <meshstage/core/error/error.hpp>

#include "tools/hosts/script.hpp"

namespace meshstage::tools::hosts {
namespace {

// Each of these waits for the end of its input: when it ends so does the namespace.
constexpr const char* kBridge = R"sh(
ip link add name hosts type bridge
ip link set dev hosts up
echo ready
read -r end || true
)sh";

// NAME MEMORY BOOT_ID NAMES [DISK WHERE]: process 1 of a host.
constexpr const char* kHost = R"sh(
hostname "$1" 2> /dev/null || echo "$1" > /proc/sys/kernel/hostname
mount -t tmpfs -o "size=$2,mode=1777" tmpfs /dev/shm
cat /proc/sys/kernel/random/uuid > "$3"
mount --bind "$3" /proc/sys/kernel/random/boot_id
if [ -e /etc/hosts ]; then mount --bind "$4" /etc/hosts; fi
if [ -n "${5-}" ]; then mount --bind "$5" "$6"; fi
echo ready
read -r end || true
)sh";

// BRIDGE HOST NAME ADDRESS MAC: a cable between the bridge's process and the host's. The other
// hosts remember the MAC of one that was lost.
constexpr const char* kCable = R"sh(
in_bridge="nsenter --target $1 --net ip" in_host="nsenter --target $2 --net ip"
$in_bridge link del dev "$3" 2> /dev/null || true
$in_bridge link add name "$3" type veth peer name eth0 address "$5" netns "$2"
$in_bridge link set dev "$3" master hosts up
$in_host address add "$4/24" dev eth0
$in_host link set dev lo up
$in_host link set dev eth0 up
echo ready
)sh";

// A network for documentation (RFC 5737): nothing outside has such an address.
std::string address_of(int host) { return fmt::format("192.0.2.{}", host + 1); }
std::string mac_of(int host) { return fmt::format("02:00:00:00:00:{:02x}", host + 1); }

std::vector<std::string> shell(const char* script, std::vector<std::string> arguments) {
  std::vector<std::string> words{"sh", "-euc", script, "sh"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

[[noreturn]] void cannot(const std::string& what, const std::string& why) {
  throw HostsUnusable(fmt::format(
      "hosts cannot be namespaces: {} failed{}{}; run this as root, or by `unshare --user "
      "--map-root-user --pid --fork --mount-proc`, with `ip` of iproute2 installed",
      what, why.empty() ? "" : ": ", why));
}

void require_ready(Script& script, const std::string& what) {
  if (!script.is_ready()) cannot(what, script.said());
}

Descriptor own_pid_namespace() {
  Descriptor own(::open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC));
  if (own.get() < 0) throw_errno("open", "/proc/self/ns/pid", errno);
  return own;
}

}  // namespace

struct NamespaceHosts::Host {
  std::unique_ptr<Script> first;  // Its process 1; null: not booted.
  Descriptor pid_namespace;
};

EnterPidNamespace::EnterPidNamespace(int pid_namespace) {
  if (pid_namespace < 0) return;
  own_ = own_pid_namespace();
  if (::setns(pid_namespace, CLONE_NEWPID) != 0) throw_errno("setns", "pid namespace", errno);
}

EnterPidNamespace::~EnterPidNamespace() {
  // NamespaceHosts tried it. A process that stayed would start all others there, too.
  if (own_.get() >= 0 && ::setns(own_.get(), CLONE_NEWPID) != 0) std::abort();
}

NamespaceHosts::NamespaceHosts(NamespaceOptions options)
    : options_(std::move(options)), hosts_(static_cast<std::size_t>(options_.count)) {
  if (::setns(own_pid_namespace().get(), CLONE_NEWPID) != 0) {
    cannot("setns() to the own pid namespace", std::generic_category().message(errno));
  }
  std::vector<std::string> words = shell(kBridge, {});
  words.insert(words.begin(), {"unshare", "--net"});
  bridge_ = std::make_unique<Script>(words);
  require_ready(*bridge_, "making a network namespace with a bridge");
  std::ofstream names(options_.folder / "names");
  names << "127.0.0.1 localhost\n";
  for (int host = 0; host < options_.count; ++host) {
    names << address_of(host) << " " << name_of(host) << "\n";
  }
  if (!names.flush()) throw_errno("write", (options_.folder / "names").string(), errno);
  for (int host = 0; host < options_.count; ++host) boot(host);
}

NamespaceHosts::~NamespaceHosts() = default;

std::string NamespaceHosts::name_of(int host) { return fmt::format("host-{}", host); }

std::filesystem::path NamespaceHosts::process_files(int host) const {
  const auto& first = hosts_.at(static_cast<std::size_t>(host)).first;
  return std::filesystem::path("/proc") / std::to_string(first->pid());
}

Entry NamespaceHosts::entry(int host) const {
  const Host& which = hosts_.at(static_cast<std::size_t>(host));
  return {{"nsenter", "--target", std::to_string(which.first->pid()), "--net", "--uts", "--ipc",
           "--mount"},
          which.pid_namespace.get()};
}

std::filesystem::path NamespaceHosts::shared_memory(int host) const {
  return process_files(host) / "root/dev/shm";
}

void NamespaceHosts::boot(int host) {
  const std::string name = name_of(host);
  std::vector<std::string> arguments{name, std::to_string(options_.memory),
                                     (options_.folder / (name + "-boot-id")).string(),
                                     (options_.folder / "names").string()};
  if (!options_.disks.empty()) {
    arguments.push_back(options_.disks.at(static_cast<std::size_t>(host)).string());
    arguments.push_back(options_.disk.string());
  }
  std::vector<std::string> words = shell(kHost, std::move(arguments));
  words.insert(words.begin(), {"unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork",
                               "--kill-child", "--mount-proc"});
  Host& which = hosts_.at(static_cast<std::size_t>(host));
  which.first = std::make_unique<Script>(std::move(words));
  require_ready(*which.first, "making the namespaces of a host");
  const std::string pids = (process_files(host) / "ns/pid_for_children").string();
  which.pid_namespace = Descriptor(::open(pids.c_str(), O_RDONLY | O_CLOEXEC));
  if (which.pid_namespace.get() < 0) throw_errno("open", pids, errno);
  connect(host);
}

void NamespaceHosts::connect(int host) {
  const auto pid_of = [](const Script& script) { return std::to_string(script.pid()); };
  Script cable(
      shell(kCable, {pid_of(*bridge_), pid_of(*hosts_.at(static_cast<std::size_t>(host)).first),
                     name_of(host), address_of(host), mac_of(host)}));
  require_ready(cable, "connecting a host to the bridge");
}

void NamespaceHosts::lose(int host) {
  hosts_.at(static_cast<std::size_t>(host)).first->kill();
  try {
    boot(host);
  } catch (const HostsUnusable& e) {  // it could be had before, so this is no lack of the machine
    throw IoError(fmt::format("{} was lost and cannot boot again: {}", name_of(host), e.what()));
  }
}

}  // namespace meshstage::tools::hosts
