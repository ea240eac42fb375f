#include <meshstage/core/replicate/bridge.hpp>

#include <algorithm>
#include <utility>

#include <meshstage/core/error/error.hpp>

namespace meshstage::replicate {

void Bridge::open() {
  const MutexLock lock(mutex_);
  stop_ = {};
}

void Bridge::connect(const Connect& how, const std::vector<int>& peers, Deadline deadline) {
  std::stop_token stop;
  {
    const MutexLock lock(mutex_);
    stop = stop_.get_token();
  }
  Pairs made = how(peers, deadline, stop);
  {
    const MutexLock lock(mutex_);
    if (!stop.stop_requested()) {
      peers_ = peers;
      pairs_ = std::move(made);
      return;
    }
  }
  made.links->close();
  made.data->close();
  throw Cancelled("the generation ended");
}

std::shared_ptr<ControlLinks> Bridge::links_to(int peer) const {
  const MutexLock lock(mutex_);
  return std::binary_search(peers_.begin(), peers_.end(), peer) ? pairs_.links : nullptr;
}

std::shared_ptr<ProcessGroup> Bridge::group_to(int peer) const {
  const MutexLock lock(mutex_);
  return std::binary_search(peers_.begin(), peers_.end(), peer) ? pairs_.data : nullptr;
}

std::shared_ptr<ControlLinks> Bridge::links() const {
  const MutexLock lock(mutex_);
  return pairs_.links;
}

void Bridge::abort(const std::exception_ptr& cause) noexcept {
  std::shared_ptr<ProcessGroup> data;
  {
    const MutexLock lock(mutex_);  // so that connect() keeps nothing afterwards
    stop_.request_stop();
    data = pairs_.data;
  }
  if (data) data->abort(cause);
}

void Bridge::close() noexcept {
  Pairs gone;
  {
    const MutexLock lock(mutex_);
    gone = std::exchange(pairs_, {});
    peers_.clear();
  }
  if (gone.links) gone.links->close();
  if (gone.data) gone.data->close();
}

}  // namespace meshstage::replicate
