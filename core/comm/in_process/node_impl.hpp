#pragma once
#include <map>
#include <memory>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/in_process/fabric.hpp>
#include <meshstage/core/comm/transport.hpp>

namespace meshstage::in_process {

/// One "process", which a test kills or freezes. The fabric's mutex guards what changes.
struct Endpoint {
  int rank = 0;
  bool dead = false;
  bool frozen = false;
};

class Node;

/// The whole state of a fabric. One mutex guards it and all nodes; no bulk copy is made under that
/// mutex.
struct Fabric {
  Mutex mutex;
  std::map<int, std::shared_ptr<Endpoint>> newest MESHSTAGE_GUARDED_BY(mutex);
  std::vector<std::weak_ptr<Node>> nodes MESHSTAGE_GUARDED_BY(mutex);
  std::map<std::string, std::map<int, std::weak_ptr<Node>>> meetings
      MESHSTAGE_GUARDED_BY(mutex);  // by name, then rank

  /// The nodes of `endpoint` that still exist.
  [[nodiscard]] std::vector<std::shared_ptr<Node>> nodes_of(const Endpoint* endpoint)
      MESHSTAGE_REQUIRES(mutex);
};

/// One end of links or of a group: it connects to its peers' nodes and hears when they leave.
class Node : public std::enable_shared_from_this<Node> {
 public:
  Node(std::shared_ptr<Fabric> fabric, std::shared_ptr<Endpoint> endpoint, ConnectRequest request);
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  virtual ~Node() = default;

  /// Blocks until connected to every peer; see Transport.
  void connect(Deadline deadline, const std::stop_token& stop);
  /// Leaves every peer; each hears `reason`. Idempotent.
  void leave(LostReason reason) MESHSTAGE_REQUIRES(fabric->mutex);
  /// Connects to the peers' nodes that are there, unless one of the two is frozen.
  void meet() MESHSTAGE_REQUIRES(fabric->mutex);

  /// Called when `peer` left. `reason` is what links report.
  virtual void peer_left(int peer, LostReason reason) MESHSTAGE_REQUIRES(fabric->mutex) = 0;
  /// The own process was killed.
  virtual void killed() MESHSTAGE_REQUIRES(fabric->mutex) = 0;
  virtual void frozen(bool now) MESHSTAGE_REQUIRES(fabric->mutex) = 0;

  /// Tells the analysis that this node's mutex is held: it is the fabric's, which the caller holds
  /// by another name.
  void shares_held_mutex() const MESHSTAGE_THREAD_ATTRIBUTE(assert_capability(fabric->mutex)) {}

  const std::shared_ptr<Fabric> fabric;
  const std::shared_ptr<Endpoint> endpoint;
  ConnectRequest request;  // peers ascending
  std::map<int, std::shared_ptr<Node>> connected MESHSTAGE_GUARDED_BY(fabric->mutex);
  std::map<int, LostReason> left MESHSTAGE_GUARDED_BY(fabric->mutex);
  /// Signalled when the members above or the endpoint change: connect() waits for it. Each node has
  /// its own, because each meeting of a thousand connecting ranks concerns two of them.
  CondVar changed;

 private:
  [[nodiscard]] std::string place() const { return request.store_prefix + "/" + request.name; }
  void check_same_job(const Node& other) const;
  bool gone_ MESHSTAGE_GUARDED_BY(fabric->mutex) = false;
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
