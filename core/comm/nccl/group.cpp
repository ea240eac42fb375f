#include <algorithm>
#include <utility>
#include <vector>

#include <meshstage/core/comm/collectives.hpp>
#include <meshstage/core/comm/empty_transfer_impl.hpp>
#include <meshstage/core/comm/nccl/group.hpp>
#include <meshstage/core/comm/nccl/module.hpp>
#include <meshstage/core/comm/nccl/owner_impl.hpp>
#include <meshstage/core/error/error.hpp>

namespace meshstage {

namespace {

using nccl::Call;
using nccl::Owner;
using nccl::Post;
using nccl::Posted;

/// Posts a call on memory of the device. `bytes` of the memory named by `address`.
struct Memory {
  const void* address;
  std::size_t bytes;
};

/// Whether the call's memory is the device's, and an event behind the trainer's work on it.
DeviceEvent ready_for(Owner& owner, std::initializer_list<Memory> memory) {
  for (const auto& one : memory) {
    try {
      owner.runtime.require_memory(owner.trainer.device, one.address, one.bytes);
    } catch (const InvalidArgument& e) {
      throw InvalidArgument(std::string("memory given to a group over NCCL ") + e.what());
    }
  }
  owner.runtime.require_not_capturing(owner.trainer);
  return owner.runtime.record(owner.trainer);
}

class NcclTransfer final : public Transfer {
 public:
  explicit NcclTransfer(std::shared_ptr<Owner> owner) : owner_(std::move(owner)) {}
  NcclTransfer(const NcclTransfer&) = delete;
  NcclTransfer& operator=(const NcclTransfer&) = delete;
  ~NcclTransfer() override {
    if (call_ && owner_->origin.is_here()) owner_->release(*call_, [this] { return what(); });
  }
  void post(Posted call) { call_ = owner_->post(std::move(call)); }
  [[nodiscard]] bool done_by(Deadline deadline) override { return owner_->wait(*call_, deadline); }
  void wait(Deadline deadline) override {
    if (done_by(deadline)) return;
    owner_->throw_late(*call_, std::make_exception_ptr(make_error<PeerSilent>(
                                   what() + ": not done by the deadline", call_->post.peer)));
  }

 private:
  [[nodiscard]] std::string what() const {
    const auto& post = call_->post;
    return detail::transfer_text(post.peer, post.bytes, post.call == Call::kSend, owner_->rank);
  }
  const std::shared_ptr<Owner> owner_;
  std::shared_ptr<Posted> call_;  // null until it is posted
};

class NcclCollectives final : public collectives::Own {
 public:
  explicit NcclCollectives(std::shared_ptr<Owner> owner) : owner_(std::move(owner)) {}

  void barrier(Deadline deadline) override {
    run("barrier", {.call = Call::kBarrier}, nullptr, 0, nullptr, 0, deadline);
  }
  void broadcast(std::span<std::byte> data, int root, Deadline deadline) override {
    run("broadcast", {.call = Call::kBroadcast, .peer = root, .bytes = data.size()}, data.data(),
        data.size(), data.data(), data.size(), deadline);
  }
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all,
                  Deadline deadline) override {
    run("all_gather", {.call = Call::kAllGather, .bytes = mine.size()}, mine.data(), mine.size(),
        all.data(), all.size(), deadline);
  }
  void all_reduce(std::span<std::byte> data, collectives::Element element, collectives::ReduceOp op,
                  Deadline deadline) override {
    run("all_reduce", reduction(Call::kAllReduce, data.size(), element, op), data.data(),
        data.size(), data.data(), data.size(), deadline);
  }
  void reduce_scatter(std::span<const std::byte> data, std::span<std::byte> mine,
                      collectives::Element element, collectives::ReduceOp op,
                      Deadline deadline) override {
    run("reduce_scatter", reduction(Call::kReduceScatter, data.size(), element, op), data.data(),
        data.size(), mine.data(), mine.size(), deadline);
  }

 private:
  static Post reduction(Call call, std::size_t bytes, collectives::Element element,
                        collectives::ReduceOp op) {
    if (element == collectives::Element::kI16) {
      throw InvalidArgument("NCCL does not reduce integers of 16 bits");
    }
    return {.call = call,
            .element = static_cast<std::uint8_t>(element),
            .reduce = static_cast<std::uint8_t>(op),
            .bytes = bytes};
  }

  void run(const char* name, const Post& post, const void* source, std::size_t source_bytes,
           void* target, std::size_t target_bytes, Deadline deadline) {
    owner_->require_open();
    if (post.bytes == 0 && post.call != Call::kBarrier) return;
    const std::string what = std::string(name) + " of " + std::to_string(post.bytes) +
                             " bytes at rank " + std::to_string(owner_->rank);
    const auto call = owner_->post(
        {.post = post,
         .source = source,
         .target = target,
         .ready = post.bytes == 0
                      ? DeviceEvent()
                      : ready_for(*owner_, {{source, source_bytes}, {target, target_bytes}})});
    try {
      if (!owner_->wait(*call, deadline)) throw PeerSilent(what + " was not done by the deadline");
    } catch (...) {  // passed on, when the memory is not in use any more
      owner_->abort(std::current_exception());
      owner_->release(*call, [&] { return std::string(what); });
      throw;
    }
  }
  const std::shared_ptr<Owner> owner_;
};

class NcclGroup final : public ProcessGroup {
 public:
  NcclGroup(std::shared_ptr<Owner> owner, std::vector<int> peers)
      : owner_(std::move(owner)), peers_(std::move(peers)), collectives_(owner_) {
    std::sort(peers_.begin(), peers_.end());
  }
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;
  ~NcclGroup() override { owner_->close(); }

  [[nodiscard]] int rank() const noexcept override { return owner_->rank; }
  [[nodiscard]] int size() const noexcept override { return owner_->size; }
  [[nodiscard]] bool linked(int peer) const noexcept override {
    return std::binary_search(peers_.begin(), peers_.end(), peer);
  }
  std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                 std::span<const std::byte> bytes) override {
    return posted(Call::kSend, peer, tag, bytes.data(), nullptr, bytes.size());
  }
  std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                    std::span<std::byte> target) override {
    return posted(Call::kReceive, peer, tag, nullptr, target.data(), target.size());
  }
  void abort(std::exception_ptr cause) noexcept override { owner_->abort(std::move(cause)); }
  void close() noexcept override { owner_->close(); }
  [[nodiscard]] collectives::Own* own_collectives() noexcept override { return &collectives_; }

 private:
  std::unique_ptr<Transfer> posted(Call call, int peer, std::uint64_t tag, const void* source,
                                   void* target, std::size_t bytes) {
    if (!linked(peer)) {
      throw make_error<InvalidArgument>(
          "rank " + std::to_string(rank()) + " has no link to rank " + std::to_string(peer), peer);
    }
    owner_->require_open();
    if (bytes == 0) return std::make_unique<detail::EmptyTransfer>();
    // The transfer first: what is posted must have somebody who takes it back.
    auto transfer = std::make_unique<NcclTransfer>(owner_);
    transfer->post({.post = {.call = call, .peer = peer, .tag = tag, .bytes = bytes},
                    .source = source,
                    .target = target,
                    .ready = ready_for(*owner_, {{source != nullptr ? source : target, bytes}})});
    return transfer;
  }
  const std::shared_ptr<Owner> owner_;
  std::vector<int> peers_;
  NcclCollectives collectives_;
};

/// Groups over NCCL, links over another transport.
class NcclTransport final : public Transport {
 public:
  NcclTransport(std::shared_ptr<Transport> host, NcclOptions options)
      : host_(std::move(host)), options_(std::move(options)) {}

  std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    return host_->connect_links(request, store, deadline, std::move(stop));
  }
  std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest& request, Store& store,
                                              Deadline deadline, std::stop_token stop) override {
    check_request(request);
    const auto& table = nccl_module_table(options_.nccl_module);
    ConnectRequest links = request;
    links.name += ".nccl";
    links.peers.clear();
    for (int r = 1; request.rank == 0 && r < request.world_size; ++r) links.peers.push_back(r);
    if (request.rank != 0) links.peers.push_back(0);
    return connect_nccl_group(table, options_, host_->connect_links(links, store, deadline, stop),
                              request, deadline, stop);
  }

 private:
  const std::shared_ptr<Transport> host_;
  const NcclOptions options_;
};

}  // namespace

std::shared_ptr<ProcessGroup> connect_nccl_group(const nccl_module::Table& module,
                                                 const NcclOptions& options,
                                                 std::shared_ptr<ControlLinks> links,
                                                 const ConnectRequest& request, Deadline deadline,
                                                 std::stop_token stop) {
  check_request(request);
  const std::shared_ptr<Owner> owner(
      new Owner(module, options, std::move(links), request.rank, request.world_size), DeleteHere{});
  // Closes the owner if anything throws.
  std::shared_ptr<NcclGroup> group(new NcclGroup(owner, request.peers), DeleteHere{});
  owner->start();
  const std::stop_callback on_stop(std::move(stop), [&owner] {
    owner->abort(std::make_exception_ptr(Cancelled("connecting was given up")));
  });
  if (!owner->wait_connected(deadline)) {
    throw Timeout("NCCL did not connect the ranks of " + request.name + " by the deadline");
  }
  return group;
}

std::shared_ptr<Transport> make_nccl_transport(std::shared_ptr<Transport> host,
                                               NcclOptions options) {
  return std::make_shared<NcclTransport>(std::move(host), std::move(options));
}

}  // namespace meshstage
