// A real redis-server on loopback, for a test: a free port, a directory of its own, ended by its
// destructor.
#pragma once
#include <optional>
#include <string>

#include "tests/comm/worker_process.hpp"

namespace meshstage::testing {

/// Where redis-server is installed; tests that need it skip, and say so, where it is not.
std::optional<std::string> redis_server_program();

class RedisServer {
 public:
  /// Answers when it returns. `password`: asked of every client, if not empty.
  explicit RedisServer(const std::string& password = "");
  [[nodiscard]] int port() const { return port_; }
  [[nodiscard]] std::string address() const { return "redis://127.0.0.1:" + std::to_string(port_); }
  void kill() { process_->kill(); }

 private:
  TemporaryFolder folder_;
  int port_ = 0;
  std::optional<WorkerProcess> process_;
};

}  // namespace meshstage::testing
