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

/// One "process", which a test kills or freezes.
struct Endpoint {
  int rank = 0;
  bool dead = false;
  bool frozen = false;
};

class Node;

/// The whole state of a fabric. One mutex guards it and all nodes; no bulk copy is made under that
/// mutex.
struct Fabric {
  std::mutex mutex;
  std::map<int, std::shared_ptr<Endpoint>> newest;
  std::vector<std::weak_ptr<Node>> nodes;
  std::map<std::string, std::map<int, std::weak_ptr<Node>>> meetings;  // by name, then rank

  /// The nodes of `endpoint` that still exist. Under the mutex.
  [[nodiscard]] std::vector<std::shared_ptr<Node>> nodes_of(const Endpoint* endpoint);
};

/// One end of links or of a group: it connects to its peers' nodes and hears when they leave.
/// "Under the mutex" means the fabric's mutex.
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
  /// Connects to the peers' nodes that are there, unless one of the two is frozen. Under the mutex.
  void meet();

  // Under the mutex, all of them:
  /// Called when `peer` left. `reason` is what links report.
  virtual void peer_left(int peer, LostReason reason) = 0;
  /// The own process was killed.
  virtual void killed() = 0;
  virtual void frozen(bool now) = 0;

  const std::shared_ptr<Fabric> fabric;
  const std::shared_ptr<Endpoint> endpoint;
  ConnectRequest request;  // peers ascending
  std::map<int, std::shared_ptr<Node>> connected;
  std::map<int, LostReason> left;
  /// Signalled when the members above or the endpoint change: connect() waits for it. Each node has
  /// its own, because each meeting of a thousand connecting ranks concerns two of them.
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
