#include <algorithm>
#include <map>
#include <utility>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/process_group.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

/// Counts the transfers of a split group that are not done, so that its close() knows.
struct Outstanding {
  Mutex mutex;
  int count MESHSTAGE_GUARDED_BY(mutex) = 0;
  bool closed MESHSTAGE_GUARDED_BY(mutex) = false;
};

class CountedTransfer final : public Transfer {
 public:
  CountedTransfer(std::unique_ptr<Transfer> inner, std::shared_ptr<Outstanding> outstanding)
      : inner_(std::move(inner)), outstanding_(std::move(outstanding)) {}
  CountedTransfer(const CountedTransfer&) = delete;
  CountedTransfer& operator=(const CountedTransfer&) = delete;
  ~CountedTransfer() override {
    inner_.reset();
    leave();
  }
  void wait(Deadline deadline) override {
    inner_->wait(deadline);
    leave();
  }
  [[nodiscard]] bool done_by(Deadline deadline) override {
    if (!inner_->done_by(deadline)) return false;
    leave();
    return true;
  }
  void wait_while_moving(std::chrono::milliseconds silence) override {
    inner_->wait_while_moving(silence);
    leave();
  }

 private:
  void leave() {
    if (std::exchange(left_, true)) return;
    const MutexLock lock(outstanding_->mutex);
    --outstanding_->count;
  }
  std::unique_ptr<Transfer> inner_;
  std::shared_ptr<Outstanding> outstanding_;
  bool left_ = false;
};

/// The collectives of a group that was split from one with its own. The default would touch memory
/// of a device from the host, so there are none.
class NoCollectives final : public collectives::Own {
 public:
  void barrier(Deadline /*deadline*/) override { refuse(); }
  void broadcast(std::span<std::byte> /*data*/, int /*root*/, Deadline /*deadline*/) override {
    refuse();
  }
  void all_gather(std::span<const std::byte> /*mine*/, std::span<std::byte> /*all*/,
                  Deadline /*deadline*/) override {
    refuse();
  }
  void all_reduce(std::span<std::byte> /*data*/, collectives::Element /*element*/,
                  collectives::ReduceOp /*op*/, Deadline /*deadline*/) override {
    refuse();
  }
  void reduce_scatter(std::span<const std::byte> /*data*/, std::span<std::byte> /*mine*/,
                      collectives::Element /*element*/, collectives::ReduceOp /*op*/,
                      Deadline /*deadline*/) override {
    refuse();
  }

 private:
  [[noreturn]] static void refuse() {
    throw InvalidArgument(
        "a group that was split from one over a device's memory has no collectives; connect a "
        "group of these ranks");
  }
};

/// Some ranks of another group, over its links, with tags of its own.
class SplitGroup final : public ProcessGroup {
 public:
  SplitGroup(std::shared_ptr<ProcessGroup> parent, std::vector<int> ranks, int rank,
             std::uint64_t salt)
      : parent_(std::move(parent)), ranks_(std::move(ranks)), rank_(rank), salt_(salt) {}
  SplitGroup(const SplitGroup&) = delete;
  SplitGroup& operator=(const SplitGroup&) = delete;
  ~SplitGroup() override { close_if_pending(); }

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return static_cast<int>(ranks_.size()); }
  [[nodiscard]] bool linked(int peer) const noexcept override {
    return peer >= 0 && peer < size() && peer != rank_ && parent_->linked(of(peer));
  }
  std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                 std::span<const std::byte> bytes) override {
    return counted(peer, [&] { return parent_->send(of(peer), salted(tag), bytes); });
  }
  std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                    std::span<std::byte> target) override {
    return counted(peer, [&] { return parent_->receive(of(peer), salted(tag), target); });
  }
  void abort(std::exception_ptr cause) noexcept override { parent_->abort(std::move(cause)); }
  void close() noexcept override { close_if_pending(); }
  [[nodiscard]] collectives::Own* own_collectives() noexcept override {
    return parent_->own_collectives() != nullptr ? &none_ : nullptr;
  }

 private:
  [[nodiscard]] int of(int peer) const { return ranks_[static_cast<std::size_t>(peer)]; }
  /// A bijection of tags, so that no two tags of this group meet, and two groups' hardly ever do.
  [[nodiscard]] std::uint64_t salted(std::uint64_t tag) const { return tag ^ salt_; }

  void close_if_pending() noexcept {
    {
      const MutexLock lock(outstanding_->mutex);
      if (std::exchange(outstanding_->closed, true) || outstanding_->count == 0) return;
    }
    parent_->abort(std::make_exception_ptr(Cancelled("a split group was closed while in use")));
    parent_->close();
  }

  template <class F>
  std::unique_ptr<Transfer> counted(int peer, F&& post) {
    if (!linked(peer)) {
      throw make_error<InvalidArgument>("rank " + std::to_string(rank_) +
                                            " of the split group has no link to rank " +
                                            std::to_string(peer),
                                        peer);
    }
    {
      const MutexLock lock(outstanding_->mutex);
      if (outstanding_->closed) throw InvalidState("the split group was closed");
      ++outstanding_->count;
    }
    try {
      return std::make_unique<CountedTransfer>(post(), outstanding_);
    } catch (...) {  // passed on; only the count is put right
      const MutexLock lock(outstanding_->mutex);
      --outstanding_->count;
      throw;
    }
  }

  const std::shared_ptr<ProcessGroup> parent_;
  const std::vector<int> ranks_;
  const int rank_;
  const std::uint64_t salt_;
  NoCollectives none_;
  const std::shared_ptr<Outstanding> outstanding_ = std::make_shared<Outstanding>();
};

/// splitmix64's step: mixes `value` into `seed`.
std::uint64_t mix(std::uint64_t seed, std::uint64_t value) {
  std::uint64_t z = seed + 0x9e3779b97f4a7c15ULL + value;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace

bool Transfer::done_by(Deadline deadline) {
  try {
    wait(deadline);
    return true;
  } catch (const PeerSilent&) {
    if (!deadline.expired()) throw;  // the group was aborted with it
    return false;
  }
}

std::uint64_t ProcessGroup::next_split(const std::vector<int>& ranks) {
  std::uint64_t turn = 0;
  {
    const MutexLock lock(splits_mutex_);
    turn = splits_[ranks]++;
  }
  std::uint64_t salt = mix(turn, ranks.size());
  for (const int r : ranks) salt = mix(salt, static_cast<std::uint64_t>(r));
  return salt | kFirstReservedTag;
}

std::shared_ptr<ProcessGroup> ProcessGroup::split(std::span<const int> ranks) {
  std::vector<int> list(ranks.begin(), ranks.end());
  const auto own = std::find(list.begin(), list.end(), rank());
  std::vector<int> sorted = list;
  std::sort(sorted.begin(), sorted.end());
  const bool twice = std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
  if (own == list.end() || twice || sorted.front() < 0 || sorted.back() >= size()) {
    throw InvalidArgument("split of a group of " + std::to_string(size()) +
                          " needs different ranks of it, the caller's (" + std::to_string(rank()) +
                          ") among them");
  }
  const int index = static_cast<int>(own - list.begin());
  const std::uint64_t salt = next_split(list);
  return std::make_shared<SplitGroup>(shared_from_this(), std::move(list), index, salt);
}

bool fully_linked(const ProcessGroup& group) noexcept {
  for (int r = 0; r < group.size(); ++r) {
    if (r != group.rank() && !group.linked(r)) return false;
  }
  return true;
}

}  // namespace meshstage
