#pragma once
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/transport.hpp>

namespace meshstage::in_process {

/// One "process": what kill and freeze happen to.
struct Endpoint {
  int rank = 0;
  bool dead = false;
  bool frozen = false;
};

class Node;

/// Everything of a fabric. One mutex guards it and all nodes; no bulk copy is made under it.
struct Fabric {
  std::mutex mutex;
  std::map<int, std::shared_ptr<Endpoint>> newest;
  std::vector<std::weak_ptr<Node>> nodes;
  std::map<std::string, std::map<int, std::weak_ptr<Node>>> meetings;  // by name, then rank

  /// The nodes of `endpoint` that still exist. Under the mutex.
  [[nodiscard]] std::vector<std::shared_ptr<Node>> nodes_of(const Endpoint* endpoint);
};

/// One end of links or of a group: connects to its peers' nodes, hears when they go.
/// "Under the mutex" is the fabric's.
class Node : public std::enable_shared_from_this<Node> {
 public:
  Node(std::shared_ptr<Fabric> fabric, std::shared_ptr<Endpoint> endpoint, ConnectRequest request);
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  virtual ~Node() = default;

  /// Blocks until connected to every peer; see Transport.
  void connect(Deadline deadline, const std::stop_token& stop);
  /// Leaves every peer; each hears `reason`. Under the mutex; idempotent.
  void leave(LostReason reason);
  /// Connects to whom is there, as far as nobody is frozen. Under the mutex.
  void meet();

  // Under the mutex, all of them:
  /// `peer` left. `reason` is what links say of it.
  virtual void peer_left(int peer, LostReason reason) = 0;
  /// The own process was killed.
  virtual void killed() = 0;
  virtual void frozen(bool now) = 0;

  const std::shared_ptr<Fabric> fabric;
  const std::shared_ptr<Endpoint> endpoint;
  ConnectRequest request;  // peers ascending
  std::map<int, std::shared_ptr<Node>> connected;
  std::map<int, LostReason> left;
  /// Of the above, or of the endpoint: what connect() waits for. Each node has its own, for of a
  /// thousand ranks that connect each meeting concerns two.
  std::condition_variable_any changed;

 private:
  [[nodiscard]] std::string place() const { return request.store_prefix + "/" + request.name; }
  void check_same_job(const Node& other) const;
  bool gone_ = false;
};

std::shared_ptr<ControlLinks> connect_links(std::shared_ptr<Fabric> fabric,
                                            std::shared_ptr<Endpoint> endpoint,
                                            const ConnectRequest& request, Deadline deadline,
                                            const std::stop_token& stop);
std::shared_ptr<ProcessGroup> connect_group(std::shared_ptr<Fabric> fabric,
                                            std::shared_ptr<Endpoint> endpoint,
                                            const ConnectRequest& request, Deadline deadline,
                                            const std::stop_token& stop);

}  // namespace meshstage::in_process
