#include "tests/comm/redis_server.hpp"

#include <unistd.h>

#include <charconv>
#include <chrono>
#include <thread>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/comm/socket/net_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage::testing {

std::optional<std::string> redis_server_program() {
  for (const char* path : {"/usr/bin/redis-server", "/usr/local/bin/redis-server"}) {
    if (::access(path, X_OK) == 0) return path;
  }
  return std::nullopt;
}

RedisServer::RedisServer(const std::string& password) {
  constexpr int kTries = 20;
  for (int i = 0; i < kTries; ++i) {
    {
      // Free now; if another takes it before the server does, the server ends, and another is
      // tried.
      const net::Descriptor probe = net::listen_on("127.0.0.1");
      const std::string bound = net::address_of(probe.get());
      const char* const end = bound.data() + bound.size();
      std::from_chars(bound.data() + bound.find(' ') + 1, end, port_);
    }
    std::vector<std::string> arguments{
        "--bind",       "127.0.0.1",    "--port",    std::to_string(port_),
        "--dir",        folder_.path(), "--save",    "",
        "--appendonly", "no",           "--logfile", folder_.path() + "/log"};
    if (!password.empty()) arguments.insert(arguments.end(), {"--requirepass", password});
    process_.emplace(*redis_server_program(), arguments);
    const Deadline deadline = Deadline::after(std::chrono::seconds(20));
    while (!deadline.expired() && process_->running()) {
      const auto connected = net::connect_to("127.0.0.1", std::to_string(port_), deadline, -1);
      if (connected.fd.valid()) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    process_.reset();
  }
  throw IoError("no redis-server started");
}

}  // namespace meshstage::testing
