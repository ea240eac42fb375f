#pragma once
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meshstage/core/async/deadline.hpp>
#include <meshstage/core/async/mutex.hpp>
#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/async/thread.hpp>
#include <meshstage/core/comm/control_links.hpp>
#include <meshstage/core/comm/late_transfer_impl.hpp>
#include <meshstage/core/comm/nccl/group.hpp>
#include <meshstage/core/comm/nccl/module_table_impl.hpp>
#include <meshstage/core/comm/nccl/sequencer_impl.hpp>
#include <meshstage/core/device/runtime.hpp>

namespace meshstage::nccl {

/// A call on a group, from its posting to its end. The owner's mutex guards `phase`; the rest does
/// not change.
struct Posted {
  enum class Phase : std::uint8_t {
    kWaiting,   ///< Some rank that takes part has not posted it yet.
    kReleased,  ///< Every rank has: it waits for its turn.
    kIssued,    ///< NCCL has it; the device may use its memory.
    kDone,
    kRefused,  ///< The ends differ in length.
  };
  Post post;
  const void* source = nullptr;
  void* target = nullptr;
  DeviceEvent ready;  ///< Behind what the trainer had issued when it posted this.
  Phase phase = Phase::kWaiting;
};

/// The owner of one communicator, and the state of its group. Its thread makes all calls to NCCL.
///
/// Threads: any may call post(), wait(), release() and abort(); one starts and closes it.
class Owner {
 public:
  Owner(const nccl_module::Table& table, const NcclOptions& options,
        std::shared_ptr<ControlLinks> links, int rank, int size);
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;
  /// close() must have returned.
  ~Owner() = default;

  /// Starts the thread, which connects.
  void start();
  /// Waits until connected. False at the deadline; throws the cause of an end.
  [[nodiscard]] bool wait_connected(Deadline deadline);

  /// Posts a call. Throws what require_open() throws.
  [[nodiscard]] std::shared_ptr<Posted> post(Posted call);
  /// Waits until the call is done. False at the deadline: then it is still pending. Throws the
  /// cause of an end, or CorruptData.
  [[nodiscard]] bool wait(const Posted& call, Deadline deadline);
  /// Throws `why`, that the call is late. Until the call is done, that is the reason with which a
  /// release() ends the group.
  [[noreturn]] void throw_late(const Posted& call, std::exception_ptr why);
  /// Returns when the call's memory is not in use any more. A call that is not done ends the group,
  /// with Cancelled, or with the error of a late call.
  void release(const Posted& call, const std::function<std::string()>& what) noexcept;
  /// Throws the cause of an end, if there is one; InvalidState after close().
  void require_open();
  /// Ends the group with `cause`, here and at every rank.
  void abort(std::exception_ptr cause) noexcept;
  void close() noexcept;

  const int rank;
  const int size;
  const TrainerStream trainer;
  DeviceRuntime& runtime;
  const ProcessOrigin origin;

 private:
  struct Issued {
    std::shared_ptr<Posted> call;
    DeviceEvent event;
  };
  using Communicator = nccl_module::Communicator;

  // On the links' thread.
  void on_message(int peer, std::span<const std::byte> message);
  void on_lost(int peer, LostReason reason, const std::string& detail);
  void take(int peer, std::span<const std::byte> message) MESHSTAGE_REQUIRES(mutex_);

  void check_open() const MESHSTAGE_REQUIRES(mutex_);
  void decide(int from, const Post& post) MESHSTAGE_REQUIRES(mutex_);
  void apply(const Decision& decision) MESHSTAGE_REQUIRES(mutex_);
  /// Ends the group, for the first cause.
  void end(std::exception_ptr cause) MESHSTAGE_REQUIRES(mutex_);
  /// Ends it as soon as what was issued has ended, but within kDrain.
  void end_after_draining(std::exception_ptr cause) MESHSTAGE_REQUIRES(mutex_);
  /// Tells every other rank, over rank 0, once.
  void announce(const AbortNote& note, int except) noexcept MESHSTAGE_REQUIRES(mutex_);

  // On the owner's thread; each throws what ends the group.
  void run();
  void connect(Communicator* communicator);
  void serve(Communicator* communicator);
  std::shared_ptr<Posted> next_to_issue();
  void issue(Communicator* communicator, const std::shared_ptr<Posted>& call);
  void reap(Communicator* communicator);
  /// Polls until the last call of NCCL is complete, or the group has ended.
  void settle(Communicator* communicator);
  void pause();
  void stop(Communicator* communicator);
  [[noreturn]] void throw_failed(nccl_module::Result result, const nccl_module::ErrorText& error);

  const nccl_module::Table& table_;
  const std::shared_ptr<ControlLinks> links_;

  Mutex mutex_;  // Nothing that blocks is called under it.
  CondVar changed_;
  std::vector<unsigned char> id_ MESHSTAGE_GUARDED_BY(mutex_);
  bool connected_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool closing_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool closed_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  bool ended_by_close_ MESHSTAGE_GUARDED_BY(mutex_) = false;  // close() came before any other end
  bool quiet_ MESHSTAGE_GUARDED_BY(mutex_) = false;  // the device uses no memory of any call
  bool announced_ MESHSTAGE_GUARDED_BY(mutex_) = false;
  std::exception_ptr cause_ MESHSTAGE_GUARDED_BY(mutex_);
  detail::LateTransfer late_ MESHSTAGE_GUARDED_BY(mutex_);
  std::exception_ptr leaving_ MESHSTAGE_GUARDED_BY(mutex_);  // a cause, when what runs has ended
  Deadline drained_by_ MESHSTAGE_GUARDED_BY(mutex_) = Deadline::never();
  std::uint64_t last_id_ MESHSTAGE_GUARDED_BY(mutex_) = 0;
  std::map<std::uint64_t, std::shared_ptr<Posted>> waiting_ MESHSTAGE_GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<Posted>> released_ MESHSTAGE_GUARDED_BY(mutex_);
  std::size_t unfinished_ MESHSTAGE_GUARDED_BY(mutex_) = 0;  // released or issued
  Sequencer sequencer_ MESHSTAGE_GUARDED_BY(mutex_);         // rank 0's is in use

  std::deque<Issued> issued_;  // the owner thread's own
  Thread thread_;              // last: it uses all of the above
};

}  // namespace meshstage::nccl
