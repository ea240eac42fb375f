// Groups of several connections, over whatever transport: every group, whatever its name.
#pragma once
#include <memory>
#include <utility>

#include <meshstage/core/comm/several_connections.hpp>

namespace meshstage::test {

class SeveralTransport : public Transport {
 public:
  SeveralTransport(std::shared_ptr<Transport> inner, unsigned connections)
      : inner_(std::move(inner)), connections_(connections) {}
  std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    return inner_->connect_links(request, store, deadline, std::move(stop));
  }
  std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    std::map<int, unsigned> all;
    for (const int peer : request.peers) all[peer] = connections_;
    return connect_several(*inner_, request, all, store, deadline, stop);
  }

 private:
  const std::shared_ptr<Transport> inner_;
  const unsigned connections_;
};

}  // namespace meshstage::test
