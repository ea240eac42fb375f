// A wire that is not to be trusted: control messages and payloads are changed on their way, and
// messages come that nobody sent.
#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/comm/transport.hpp>
#include <meshstage/core/protocol/codec.hpp>

namespace meshstage::test {

using Bytes = std::vector<std::byte>;

/// Shared by the transports of all ranks; outlives them. Threads: any.
class Meddler {
 public:
  /// Changes a control message before its digest is made (as a rank that lies would), its bytes on
  /// the way, digest included, or a piece of an image on its way. Called from several threads at
  /// once. Set before the first wrap().
  using Change = std::function<void(int from, int to, Bytes& bytes)>;
  Change message, on_the_way, payload;
  /// Like payload, with the name of the group ("data", "train", "pair-data", "old-pair-data").
  std::function<void(const std::string& group, Bytes& bytes)> payload_of_group;
  /// Called before rank `at` posts a receive of a piece from rank `from` in the group of that name
  /// ("data", "data-1"); what it throws is what the backend would have thrown.
  std::function<void(int at, int from, const std::string& group)> before_receive;
  /// Called before rank `at` connects a group of that name.
  std::function<void(int at, const std::string& group)> before_connect;

  std::shared_ptr<Transport> wrap(std::shared_ptr<Transport> inner) {
    return std::make_shared<MeddledTransport>(*this, std::move(inner));
  }
  /// Sends a control message as rank `from`, over its newest links, behind what it has sent itself,
  /// with the right digest.
  void inject(int from, int to, std::span<const std::byte> bytes) {
    std::shared_ptr<ControlLinks> links;
    {
      const std::lock_guard lock(mutex_);
      links = links_.at(from).lock();
    }
    if (links) links->send(to, protocol::with_digest({bytes.begin(), bytes.end()}));
  }

 private:
  class Links : public ControlLinks {
   public:
    Links(Meddler& meddler, std::shared_ptr<ControlLinks> inner)
        : meddler_(meddler), inner_(std::move(inner)) {}
    [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
    [[nodiscard]] const std::vector<int>& peers() const noexcept override {
      return inner_->peers();
    }
    void set_handlers(ControlHandlers handlers) override {
      inner_->set_handlers(std::move(handlers));
    }
    void send(int peer, std::span<const std::byte> bytes) override {
      const auto whole = protocol::without_digest(bytes);
      if (!whole) return inner_->send(peer, bytes);  // of the membership, while it forms
      Bytes changed(whole->begin(), whole->end());
      if (meddler_.message) meddler_.message(rank(), peer, changed);
      changed = protocol::with_digest(std::move(changed));
      if (meddler_.on_the_way) meddler_.on_the_way(rank(), peer, changed);
      inner_->send(peer, changed);
    }
    void close() noexcept override { inner_->close(); }

   private:
    Meddler& meddler_;
    std::shared_ptr<ControlLinks> inner_;
  };

  struct HeldTransfer : Transfer {
    Bytes bytes;
    std::unique_ptr<Transfer> inner;
    ~HeldTransfer() override { inner.reset(); }  // before its bytes
    void wait(Deadline deadline) override { inner->wait(deadline); }
  };

  class Group : public ProcessGroup {
   public:
    Group(Meddler& meddler, std::shared_ptr<ProcessGroup> inner, std::string name)
        : meddler_(meddler), inner_(std::move(inner)), name_(std::move(name)) {}
    [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
    [[nodiscard]] int size() const noexcept override { return inner_->size(); }
    [[nodiscard]] bool linked(int peer) const noexcept override { return inner_->linked(peer); }
    std::unique_ptr<Transfer> send(int peer, std::uint64_t tag,
                                   std::span<const std::byte> bytes) override {
      if (!meddler_.payload && !meddler_.payload_of_group) return inner_->send(peer, tag, bytes);
      auto held = std::make_unique<HeldTransfer>();
      held->bytes.assign(bytes.begin(), bytes.end());
      if (meddler_.payload) meddler_.payload(rank(), peer, held->bytes);
      if (meddler_.payload_of_group) meddler_.payload_of_group(name_, held->bytes);
      held->inner = inner_->send(peer, tag, held->bytes);
      return held;
    }
    std::unique_ptr<Transfer> receive(int peer, std::uint64_t tag,
                                      std::span<std::byte> target) override {
      if (meddler_.before_receive) meddler_.before_receive(rank(), peer, name_);
      return inner_->receive(peer, tag, target);
    }
    void abort(std::exception_ptr cause) noexcept override { inner_->abort(std::move(cause)); }
    void close() noexcept override { inner_->close(); }

   private:
    Meddler& meddler_;
    std::shared_ptr<ProcessGroup> inner_;
    const std::string name_;
  };

  class MeddledTransport : public Transport {
   public:
    MeddledTransport(Meddler& meddler, std::shared_ptr<Transport> inner)
        : meddler_(meddler), inner_(std::move(inner)) {}
    std::shared_ptr<ControlLinks> connect_links(const ConnectRequest& request, Store& store,
                                                Deadline deadline, std::stop_token stop) override {
      auto links = std::make_shared<Links>(
          meddler_, inner_->connect_links(request, store, deadline, std::move(stop)));
      const std::lock_guard lock(meddler_.mutex_);
      meddler_.links_[request.rank] = links;
      return links;
    }
    std::shared_ptr<ProcessGroup> connect_group(const ConnectRequest& request, Store& store,
                                                Deadline deadline, std::stop_token stop) override {
      if (meddler_.before_connect) meddler_.before_connect(request.rank, request.name);
      auto group = inner_->connect_group(request, store, deadline, std::move(stop));
      const std::string& name = request.name;  // "data-1" is one of several connections
      const bool images = name.starts_with("data") || name.ends_with("pair-data");
      if (!images && !meddler_.payload_of_group) return group;
      return std::make_shared<Group>(meddler_, std::move(group), request.name);
    }

   private:
    Meddler& meddler_;
    std::shared_ptr<Transport> inner_;
  };

  std::mutex mutex_;
  std::map<int, std::weak_ptr<ControlLinks>> links_;
};

}  // namespace meshstage::test
