#include <meshstage/core/replicate/persister.hpp>

#include <algorithm>
#include <memory>
#include <utility>

namespace meshstage::replicate {
namespace {

/// finish() waits for its end.
class Persisting {
 public:
  explicit Persisting(TrainerGate& gate) : gate_(gate) { gate_.persisting_begins(); }
  Persisting(const Persisting&) = delete;
  Persisting& operator=(const Persisting&) = delete;
  ~Persisting() { gate_.persisting_ends(); }

 private:
  TrainerGate& gate_;
};

}  // namespace

Persister::Persister(Engine& engine, Slots& slots, const Persistence& files)
    : engine_(engine), slots_(slots), files_(files), worker_("ms-persist", engine.boundary()) {}

std::vector<SlotKey> Persister::slots_with(ImageId id) const {
  std::vector<SlotKey> keys;
  const auto add = [&](int owner, const protocol::SlotPair& pair) {
    if (const auto key = sealed_slot(owner, pair, id)) keys.push_back(*key);
  };
  add(engine_.rank, engine_.state.own);
  for (std::size_t ward = 0; ward < engine_.state.held.size(); ++ward) {
    add(engine_.config->wards[ward], engine_.state.held[ward]);
  }
  return keys;
}

void Persister::persist(ImageId id, Promise<DiskOutcome> persisted) {
  const auto keys = slots_with(id);
  waiting_.emplace(id, std::move(persisted));
  slots_.hold_for_disk(keys);
  engine_.gate.persisting_begins();
  try {
    worker_.post([this, id, keys, generation = engine_.present] {
      const WrittenStep result = write_step(engine_, files_, keys, id);
      give_slots_back(engine_.loop, [&] {
        engine_.loop.post(
            [this, id, keys, result, generation] { written(id, keys, result, generation); });
      });
    });
  } catch (...) {  // nothing was begun
    engine_.gate.persisting_ends();
    slots_.release_from_disk(keys);
    throw;
  }
}

void Persister::written(ImageId id, const std::vector<SlotKey>& keys, const WrittenStep& result,
                        std::uint64_t generation) {
  const bool good = result.good;
  // finish() waits for both, so both end here even if the rest throws.
  struct AtEnd {
    Persister& persister;
    const bool good;
    ~AtEnd() {
      if (persister.newest_done_) persister.newest_done_->set_value(good);
      persister.newest_done_.reset();
      persister.engine_.gate.persisting_ends();
    }
  } const at_end{*this, good};
  slots_.release_from_disk(keys);
  if (good) written_ = std::max(written_, id);
  if (const auto it = waiting_.find(id); !good && it != waiting_.end()) {
    it->second.set_value(DiskOutcome::kFailed);
    waiting_.erase(it);
  }
  engine_.gate.count([&](Stats& stats) {
    ++(good ? stats.persisted : stats.persist_failed);
    stats.persist_seconds = result.seconds;
  });
  if (good && generation == engine_.present) engine_.feed(protocol::Persisted{id});
}

void Persister::persist_newest(Promise<bool> done) {
  const ImageId id = engine_.state.base;
  if (!id.exists() || id <= written_) {
    done.set_value(true);
    return;
  }
  persist(id);
  newest_done_ = std::move(done);  // written() comes later, on this thread
}

void Persister::lose(const std::exception_ptr& loss) {
  for (auto& [id, persisted] : std::exchange(waiting_, {})) persisted.set_error(loss);
}

void Persister::all_on_disk(ImageId id) {
  while (!waiting_.empty() && waiting_.begin()->first <= id) {
    const bool this_one = waiting_.begin()->first == id;
    waiting_.begin()->second.set_value(this_one ? DiskOutcome::kEverywhere : DiskOutcome::kFailed);
    waiting_.erase(waiting_.begin());
  }
  engine_.gate.count([&](Stats& stats) { stats.disk_step = id.step; });
  // finish() waits for it: what was still to be removed would stay.
  const auto removing = std::make_shared<const Persisting>(engine_.gate);
  worker_.post([this, removing, older_than = id, keep = engine_.options.keep - 1] {
    remove_older(engine_, files_, older_than, keep);
  });
}

}  // namespace meshstage::replicate
