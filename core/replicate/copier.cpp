#include <meshstage/core/replicate/copier.hpp>

#include <utility>

namespace meshstage::replicate {

Copier::Copier(Engine& engine)
    : engine_(engine), writer_(engine), worker_("ms-copy", engine.boundary()) {}

void Copier::copy(std::shared_ptr<StageJob> job, ImageIdentity identity,
                  std::function<void(const protocol::Event&)> done) {
  auto ticket = engine_.scope.enter();
  if (!ticket) return;
  worker_.post(
      [this, job = std::move(job), who = std::move(identity), tell = std::move(done), ticket] {
        const protocol::Event event = writer_.write(*job, who);
        engine_.to_loop(ticket, [tell, event] { tell(event); });
      });
}

}  // namespace meshstage::replicate
