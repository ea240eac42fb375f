// Images and a worker process for the vault's tests.
#pragma once
#include <meshstage/core/vault/vault.hpp>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <stdexcept>
#include <string>
#include <vector>

extern char** environ;

inline meshstage::ImageIdentity identity_of(const std::string& job, int rank, meshstage::ImageId id,
                                            meshstage::ImageId base = meshstage::kNoImage) {
  return {job, rank, 4, id, base};
}

/// The vault does not look inside: any numbers do.
inline meshstage::ImageInfo info_of(const meshstage::ImageIdentity& identity, std::uint64_t bytes) {
  return {identity, bytes, bytes / 2, 64, {identity.id.step, 2}, {3, identity.id.step}};
}

/// Writes and seals an image whose bytes all are the step's low byte.
inline meshstage::ImageInfo write_image(meshstage::Vault& vault, meshstage::SlotKey key,
                                        const meshstage::ImageIdentity& identity,
                                        std::uint64_t bytes) {
  auto lease = vault.begin_write(key, identity, bytes);
  for (auto& b : lease.image()) b = static_cast<std::byte>(identity.id.step);
  const auto info = info_of(identity, bytes);
  lease.seal(info);
  return info;
}

inline bool is_filled_with(std::span<const std::byte> bytes, std::uint64_t step) {
  for (const auto b : bytes) {
    if (b != static_cast<std::byte>(step)) return false;
  }
  return !bytes.empty();
}

/// vault_worker, with its stdin and stdout. Killed, if it still runs, and reaped by the destructor.
class VaultWorker {
 public:
  VaultWorker(const std::filesystem::path& directory, const std::string& job, int rank,
              const std::string& command) {
    std::array<int, 2> in{};
    std::array<int, 2> out{};
    if (::pipe2(in.data(), O_CLOEXEC) != 0 || ::pipe2(out.data(), O_CLOEXEC) != 0) {
      throw std::runtime_error("pipe2");
    }
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    std::vector<std::string> words{MESHSTAGE_VAULT_WORKER, directory.string(), job,
                                   std::to_string(rank), command};
    std::vector<char*> argv;
    for (auto& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    const int error = ::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(in[0]);
    ::close(out[1]);
    to_ = in[1];
    from_ = out[0];
    if (error != 0) throw std::runtime_error("posix_spawn vault_worker");
    ready_ = read_line();
  }
  VaultWorker(const VaultWorker&) = delete;
  VaultWorker& operator=(const VaultWorker&) = delete;
  ~VaultWorker() {
    kill();
    ::close(to_);
    ::close(from_);
  }

  [[nodiscard]] const std::string& ready() const { return ready_; }
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Sends a line, returns the answer.
  std::string ask(const std::string& line) {
    tell(line);
    return answer();
  }
  void tell(const std::string& line) const {
    const std::string text = line + "\n";
    if (::write(to_, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
      throw std::runtime_error("write to vault_worker");
    }
  }
  [[nodiscard]] std::string answer() const { return read_line(); }
  /// Waits until the process has stopped itself.
  void wait_stopped() const {
    int status = 0;
    while (::waitpid(pid_, &status, WUNTRACED) < 0 && errno == EINTR) {
    }
    if (!WIFSTOPPED(status)) throw std::runtime_error("vault_worker ended, it did not stop");
  }
  void signal(int number) const { ::kill(pid_, number); }
  /// SIGKILL, and waits until it is gone.
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
  }

 private:
  std::string read_line() const {
    std::string line;
    for (char c = 0; ::read(from_, &c, 1) == 1 && c != '\n';) line += c;
    return line;
  }
  pid_t pid_ = -1;
  int to_ = -1;
  int from_ = -1;
  std::string ready_;
};
