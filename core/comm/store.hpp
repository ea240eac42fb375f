#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// The one thing all ranks of a job can see before they are connected: a small map from keys to
/// values. Keys are non-empty text of at most 1024 bytes, '/' separates levels by custom; values
/// are any bytes. Meant for a few hundred small entries, not for data.
///
/// Threads: every call from any thread. Every call throws Timeout at its deadline, IoError when the
/// store cannot be reached, InvalidArgument on a bad key. After a Timeout of set(),
/// compare_and_create() or remove() it may have happened all the same. A file store's calls end
/// when the file system's do.
class MESHSTAGE_API Store {
 public:
  virtual ~Store() = default;

  /// Writes `value`, whatever was there. A reader sees the old value or the new one, never a part.
  virtual void set(const std::string& key, std::string_view value,
                   Deadline deadline = Deadline::never()) = 0;
  [[nodiscard]] virtual std::optional<std::string> get(const std::string& key,
                                                       Deadline deadline = Deadline::never()) = 0;
  /// Writes `value` if the key is not there; returns what is there now. Atomic among all processes:
  /// of several callers exactly one wins, and all of them get the winner's value.
  virtual std::string compare_and_create(const std::string& key, std::string_view value,
                                         Deadline deadline = Deadline::never()) = 0;
  /// All keys that begin with `prefix`, sorted. Entries that others make or remove meanwhile may or
  /// may not be there.
  [[nodiscard]] virtual std::vector<std::string> list(const std::string& prefix,
                                                      Deadline deadline = Deadline::never()) = 0;
  /// Nothing happens if the key is not there.
  virtual void remove(const std::string& key, Deadline deadline = Deadline::never()) = 0;

  /// Called in wait_reachable(), on its thread, after each attempt that failed, with what it will
  /// say if there is no better one.
  using Unanswered = std::function<void(const std::string& why)>;
  /// Waits until the store answers, which may start a moment after the ranks that need it: the
  /// first call in a job that has a deadline. Returns at once for a store without a server.
  /// Throws Timeout at the deadline (what was tried, how often, how it failed, what to do),
  /// Cancelled once a stop is requested, and IoError at once where waiting does not help: something
  /// else than a store answers.
  virtual void wait_reachable(Deadline deadline, std::stop_token stop = {},
                              const Unanswered& unanswered = {});

  /// Waits until one of `keys` is there and returns that key's value. Throws Timeout at the
  /// deadline (the message lists the keys), Cancelled once a stop is requested.
  virtual std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                                   std::stop_token stop = {}) = 0;
  std::string wait_for(const std::string& key, Deadline deadline, std::stop_token stop = {}) {
    return wait_for_any(std::span(&key, 1), deadline, std::move(stop));
  }

  /// Throws InvalidArgument, naming the key, unless it can be one.
  static void check_key(const std::string& key);

 protected:
  /// Throws InvalidArgument, naming the key, if the value is longer than this store's `most` bytes.
  static void check_value(const std::string& key, std::string_view value, std::size_t most);
  /// Throws the Timeout of wait_for_any(); `where` names the store, `why` says why it did not
  /// answer, if so.
  [[noreturn]] static void throw_not_there(const std::string& where,
                                           std::span<const std::string> keys,
                                           const std::string& why = {});
};

/// A directory that all ranks see (a local disk for one host, a shared file system for several).
/// One file for each key; creation is atomic by link(2), replacement by rename(2). Waiting polls,
/// from 0.1 ms growing to 10 ms.
/// The directory and its missing parents are made with mode 0700, whatever the umask; nothing in it
/// is ever removed but by remove(). list() passes over files that no store has written; a key whose
/// file is a folder, a link or a pipe is an IoError.
class MESHSTAGE_API FileStore final : public Store {
 public:
  explicit FileStore(std::filesystem::path directory);

  void set(const std::string& key, std::string_view value,
           Deadline deadline = Deadline::never()) override;
  std::optional<std::string> get(const std::string& key,
                                 Deadline deadline = Deadline::never()) override;
  std::string compare_and_create(const std::string& key, std::string_view value,
                                 Deadline deadline = Deadline::never()) override;
  std::vector<std::string> list(const std::string& prefix,
                                Deadline deadline = Deadline::never()) override;
  void remove(const std::string& key, Deadline deadline = Deadline::never()) override;
  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop = {}) override;

  [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }

 private:
  [[nodiscard]] std::filesystem::path file_of(const std::string& key) const;
  [[nodiscard]] std::filesystem::path write_temporary(std::string_view value) const;
  std::filesystem::path directory_;
};

/// A store for ranks that are threads of one process. Waiting does not poll.
class MESHSTAGE_API InMemoryStore final : public Store {
 public:
  InMemoryStore();
  ~InMemoryStore() override;

  void set(const std::string& key, std::string_view value,
           Deadline deadline = Deadline::never()) override;
  std::optional<std::string> get(const std::string& key,
                                 Deadline deadline = Deadline::never()) override;
  std::string compare_and_create(const std::string& key, std::string_view value,
                                 Deadline deadline = Deadline::never()) override;
  std::vector<std::string> list(const std::string& prefix,
                                Deadline deadline = Deadline::never()) override;
  void remove(const std::string& key, Deadline deadline = Deadline::never()) override;
  std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                           std::stop_token stop = {}) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The store that an address names:
///   file:/path, or /path alone     a FileStore: a folder that every rank sees
///   tcp://host:port                the server `meshstage store` (tcp_store/store.hpp)
///   redis://[[user]:password@]host[:port][/database]   a Redis server (redis/store.hpp)
/// Nothing else is guessed, MASTER_ADDR and MASTER_PORT in particular. Connects to nothing yet.
/// Throws InvalidArgument, naming what is supported, also for a host that can never be one
/// ("10.0.0.300", "my host"), and NotFound for a store that this build is without.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<Store> open_store(const std::string& address);

}  // namespace meshstage
