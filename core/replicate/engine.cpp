#include <meshstage/core/replicate/engine.hpp>

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include <meshstage/core/identity/digest.hpp>
#include <meshstage/core/replicate/agreement.hpp>

namespace meshstage::replicate {
namespace {

std::uint64_t tag_of_job(const std::string& job) {
  return digest64(std::as_bytes(std::span(job.data(), job.size())));
}

}  // namespace

Engine::Engine(CheckpointerOptions given, std::uint64_t vault_epoch, FailureHandler on_failure,
               TaskObserver on_task, std::shared_ptr<Log> log)
    : options(std::move(given)),
      rank(options.environment->rank),
      world_size(options.environment->world_size),
      keeps_old_in_memory(replicate::keeps_old_in_memory(options)),
      fs(options.file_system != nullptr ? *options.file_system : real_file_system()),
      config(config_of(options)),
      wire{tag_of_job(options.job), world_size},
      pace(options.pace),
      state(protocol::make_state(config)),
      loop(std::move(on_failure), std::move(on_task)),
      report(options.job, rank, log ? std::move(log) : std::make_shared<Log>(options.log),
             options.observer, boundary()),
      vault(Vault::attach(
          {.job = options.job,
           .rank = rank,
           .directory = options.vault_directory,
           .fs = options.file_system,
           .epoch = vault_epoch,
           .world_size = options.any_world ? std::optional<int>(world_size) : std::nullopt,
           .keeps_others = keeps_old_in_memory})) {}

void Engine::to_loop(TaskScope::Ticket ticket, std::function<void()> task) {
  loop.post([held = std::move(ticket), run = std::move(task)] { run(); });
}

void Engine::post(protocol::Event event) {
  if (auto ticket = scope.enter()) {
    to_loop(std::move(ticket), [this, e = std::move(event)] { feed(e); });
  }
}

FailureHandler Engine::boundary() {
  return [this](std::exception_ptr failure) { loop.fail(std::move(failure)); };
}

void Engine::say(int to, std::uint64_t of_generation, const protocol::Body& body) const {
  const auto among = [to](const std::vector<int>& ranks) {
    return std::binary_search(ranks.begin(), ranks.end(), to);
  };
  // A bridge may lead to a tree neighbour, whose messages keep their order on the link of before.
  const bool linked = among(config->peers) || among(config->data_peers);
  const auto links = linked ? generation.links : bridge.links_to(to);
  if (!links) return;
  links->send(to, protocol::with_digest(protocol::encode(wire, rank, {of_generation, body})));
}

std::shared_ptr<ProcessGroup> Engine::group_to(int peer) const {
  auto group = bridge.group_to(peer);
  return group ? group : generation.data;
}

transfer::Link Engine::link_to(ProcessGroup& group, int peer, const protocol::StreamStart& start,
                               Point point) {
  if (const unsigned all = group.connections(peer); start.connections > all) {
    throw make_error<PeerLost>("rank " + std::to_string(peer) + " sends over " +
                                   std::to_string(start.connections) + " connections; there are " +
                                   std::to_string(all),
                               peer);
  }
  return {.group = group,
          .peer = peer,
          .tag = 0,
          .stall = options.deadline,
          .on_piece = [this, peer, id = start.id, point](
                          std::uint64_t piece,
                          std::uint64_t pieces) { report.reach(point, id, peer, piece, pieces); },
          .connections = start.connections};
}

unsigned Engine::connections_beside_trainer(const ProcessGroup& group, int peer) const {
  const auto agreed = generation.connections.find(peer);
  if (agreed == generation.connections.end()) return 1;
  return std::min(agreed->second.beside_trainer, group.connections(peer));
}

void Engine::lost_in_transfer(const TaskScope::Ticket& ticket, int peer, ErrorKind kind,
                              std::string why) {
  to_loop(ticket,
          [this, peer, kind, text = std::move(why)] { lose_in_transfer(peer, kind, text); });
}

void Engine::lost_in_transfer(const TaskScope::Ticket& ticket, int peer, const PeerLost& error) {
  lost_in_transfer(ticket, error.rank().value_or(peer), error.kind(),
                   std::string("was lost while an image travelled: ") + error.what());
}

ImageIdentity Engine::identity(int owner, ImageId id, ImageId base) const {
  return {options.job, owner, world_size, id, base};
}

transfer::Shape Engine::shape_of(const protocol::ImageSizes& sizes, bool with_manifest,
                                 bool replica) const {
  return {sizes.image_bytes,
          sizes.manifest_bytes,
          options.block_bytes,
          with_manifest,
          replica ? sizes.borrowed_bytes : 0,
          sizes.loans};
}

}  // namespace meshstage::replicate
