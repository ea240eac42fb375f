#include "tools/store/command.hpp"

#include <poll.h>
#include <sys/resource.h>

#include <cerrno>
#include <charconv>
#include <memory>
#include <ostream>
#include <string>

#include <meshstage/core/comm/tcp_store/server.hpp>
#include <meshstage/core/error/error.hpp>

#include "tools/command/command.hpp"
#include "tools/process/signals.hpp"

namespace meshstage::tools {
namespace {

StoreServerOptions listening_on(const std::string& address) {
  const auto colon = address.rfind(':');
  StoreServerOptions options;
  if (colon != std::string::npos) {
    options.host = address.substr(0, colon);
    if (options.host.starts_with('[') && options.host.ends_with(']')) {
      options.host = options.host.substr(1, options.host.size() - 2);
    }
    const char* const end = address.data() + address.size();
    const auto [stopped, error] = std::from_chars(address.data() + colon + 1, end, options.port);
    if (error == std::errc() && stopped == end && !options.host.empty()) return options;
  }
  throw InvalidArgument("--listen " + address + ": HOST:PORT is needed, port 0 is any free one");
}

/// As many connections as the system lets this process have. A limit that stays is no error: the
/// server refuses what it has no room for.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

void serve(const std::string& address, std::ostream& out) {
  raise_descriptor_limit();
  Signals signals;  // before there is a thread
  const StoreServer server = [&] {
    try {
      return StoreServer(listening_on(address));
    } catch (const IoError& e) {
      throw IoError(e.message() +
                    "; choose another port (0: any free one), or an address of this host");
    }
  }();
  out << "MESHSTAGE_STORE=" << server.address() << std::endl;
  std::optional<int> ending;
  while (!ending) {
    pollfd wanted{signals.descriptor(), POLLIN, 0};
    if (::poll(&wanted, 1, -1) < 0 && errno != EINTR) throw_errno("poll", "", errno);
    ending = signals.take();
  }
}

}  // namespace

void add_store_command(CLI::App& app, std::ostream& out) {
  auto* command = app.add_subcommand(
      "store",
      "Serve the Store in which the ranks of a job meet if they share no folder. Runs until SIGINT "
      "or SIGTERM, and its entries live as long as it runs. Start it before the ranks or with them "
      "(they wait for it), on a host that outlives them, and not as one of the ranks. Prints the "
      "address to give to the ranks. Every host that reaches the port can write, so listen on a "
      "network that only the job's hosts are in.");
  auto address = std::make_shared<std::string>("127.0.0.1:29400");
  command->add_option("--listen", *address, "HOST:PORT to listen on; port 0: any free one")
      ->capture_default_str();
  set_example(*command,
              "meshstage store --listen 10.0.0.1:29400 & "
              "MESHSTAGE_STORE=tcp://10.0.0.1:29400 srun ./trainer");
  command->callback([address, &out] { serve(*address, out); });
}

}  // namespace meshstage::tools
