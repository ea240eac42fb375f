#include <utility>

#include <meshstage/core/comm/gloo/group.hpp>
#include <meshstage/core/comm/gloo/module.hpp>
#include <meshstage/core/comm/gloo/tcp_transport.hpp>
#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/socket/links.hpp>
#include <meshstage/core/comm/socket/net_impl.hpp>

namespace meshstage {

namespace {

std::string host_to_listen_on(const TcpTransportOptions& options) {
  if (!options.host.empty()) {
    net::check_host(options.host);
    return net::without_brackets(options.host);
  }
  if (options.single_host) return "127.0.0.1";
  return net::own_address_for_others();  // loopback, too: the ranks may all be here
}

class TcpTransport final : public Transport {
 public:
  explicit TcpTransport(TcpTransportOptions options)
      : options_(std::move(options)), host_(host_to_listen_on(options_)) {}

  std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    return connect_socket_links(host_, options_.links, request, store, deadline, std::move(stop));
  }
  std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    if (request.peers.empty()) {
      // A group without a wire needs no Gloo.
      return InProcessFabric().attach(request.rank)->connect_group(request, store, deadline, stop);
    }
    return connect_gloo_group(gloo_module_table(options_.gloo_module), host_, request, store,
                              deadline, std::move(stop));
  }

 private:
  const TcpTransportOptions options_;
  const std::string host_;
};

}  // namespace

std::string address_for_other_hosts() {
  const std::string host = net::own_address_for_others();
  net::check_not_loopback(host);
  return host;
}

std::shared_ptr<Transport> make_tcp_transport(TcpTransportOptions options) {
  return std::make_shared<TcpTransport>(std::move(options));
}

}  // namespace meshstage
