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

/// A small map from keys to values: all that the ranks of a job share before they are connected.
/// Keys are non-empty text of at most 1024 bytes, '/' separates levels by custom; values are any
/// bytes. Meant for a few hundred small entries, not for data.
///
/// Threads: any may make every call. Every call throws Timeout at its deadline, IoError when the
/// store cannot be reached, InvalidArgument on a bad key. After a Timeout of set(),
/// compare_and_create() or remove() the change may have been made. A file store ignores deadlines:
/// its calls end when the file system's calls end.
class MESHSTAGE_API Store {
 public:
  virtual ~Store() = default;

  /// Writes `value`, whether or not the key is there. A reader sees the old value or the new one,
  /// never a part of it.
  virtual void set(const std::string& key, std::string_view value,
                   Deadline deadline = Deadline::never()) = 0;
  [[nodiscard]] virtual std::optional<std::string> get(const std::string& key,
                                                       Deadline deadline = Deadline::never()) = 0;
  /// Writes `value` if the key is not there; returns what is there now. Atomic among all processes:
  /// of several callers exactly one wins, and all of them get the winner's value.
  virtual std::string compare_and_create(const std::string& key, std::string_view value,
                                         Deadline deadline = Deadline::never()) = 0;
  /// All keys that begin with `prefix`, sorted; with or without entries made or removed meanwhile.
  [[nodiscard]] virtual std::vector<std::string> list(const std::string& prefix,
                                                      Deadline deadline = Deadline::never()) = 0;
  /// Does nothing if the key is not there.
  virtual void remove(const std::string& key, Deadline deadline = Deadline::never()) = 0;

  /// wait_reachable() calls this, on its thread, after each attempt that failed. `why` is the text
  /// of the Timeout that follows if no later attempt succeeds.
  using Unanswered = std::function<void(const std::string& why)>;
  /// Waits until the store answers, because its server may start a moment after the ranks. Returns
  /// at once for a store without a server. Throws Timeout at the deadline (the message says what
  /// was tried, how often, how it failed and what to do), and Cancelled once a stop is requested.
  /// Throws IoError at once if something other than a store answers.
  virtual void wait_reachable(Deadline deadline, std::stop_token stop = {},
                              const Unanswered& unanswered = {});

  /// Waits until one of `keys` is there and returns that key's value. Throws Timeout at the
  /// deadline (the message lists the keys), Cancelled once a stop is requested.
  virtual std::string wait_for_any(std::span<const std::string> keys, Deadline deadline,
                                   std::stop_token stop = {}) = 0;
  std::string wait_for(const std::string& key, Deadline deadline, std::stop_token stop = {}) {
    return wait_for_any(std::span(&key, 1), deadline, std::move(stop));
  }

  /// Throws InvalidArgument, naming the key, if no store can have such a key.
  static void check_key(const std::string& key);

 protected:
  /// Throws InvalidArgument, naming the key, if the value is longer than this store's `most` bytes.
  static void check_value(const std::string& key, std::string_view value, std::size_t most);
  /// Throws the Timeout of wait_for_any(); `where` names the store; `why` says why the store did
  /// not answer, and is empty if it did.
  [[noreturn]] static void throw_not_there(const std::string& where,
                                           std::span<const std::string> keys,
                                           const std::string& why = {});
};

/// A directory that all ranks see (a local disk for one host, a shared file system for several).
/// One file for each key; creation is atomic by link(2), replacement by rename(2). Waiting polls,
/// from 0.1 ms growing to 10 ms. The store makes the directory and its missing parents with mode
/// 0700, whatever the umask. Only remove() removes files. list() passes over files that no store
/// has written; a key whose file is a folder, a link or a pipe gives IoError.
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
/// Does not read MASTER_ADDR and MASTER_PORT. Does not connect yet. Throws InvalidArgument, which
/// lists the supported forms, for any other text, also if its host can never be one ("10.0.0.300",
/// "my host"). Throws NotFound for a kind of store that this build lacks.
[[nodiscard]] MESHSTAGE_API std::shared_ptr<Store> open_store(const std::string& address);

}  // namespace meshstage
