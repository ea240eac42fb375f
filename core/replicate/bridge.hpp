#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <stop_token>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/comm/membership.hpp>

namespace meshstage::replicate {

/// This rank's connections to ranks that are no data peers, for the transfers of one recovery.
/// Empty most of the time. Threads: any; connect() and close() block, so the links' thread must not
/// call them.
class Bridge {
 public:
  using Connect = std::function<Pairs(const std::vector<int>&, Deadline, std::stop_token)>;

  /// Before the first connect() of a generation.
  void open();
  /// Throws what `how` throws, and Cancelled once abort() was called.
  void connect(const Connect& how, const std::vector<int>& peers, Deadline deadline);
  /// Null for a rank to which there is no bridge.
  [[nodiscard]] std::shared_ptr<ControlLinks> links_to(int peer) const;
  [[nodiscard]] std::shared_ptr<ProcessGroup> group_to(int peer) const;
  /// All of them; null if there are none.
  [[nodiscard]] std::shared_ptr<ControlLinks> links() const;
  /// Ends a connect() that is under way, and all transfers, with `cause`.
  void abort(const std::exception_ptr& cause) noexcept;
  /// Returns when no receive target is written any more.
  void close() noexcept;

 private:
  mutable Mutex mutex_;
  std::stop_source stop_ MESHSTAGE_GUARDED_BY(mutex_);
  std::vector<int> peers_ MESHSTAGE_GUARDED_BY(mutex_);  ///< Ascending.
  Pairs pairs_ MESHSTAGE_GUARDED_BY(mutex_);
};

}  // namespace meshstage::replicate
