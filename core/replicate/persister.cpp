#include <meshstage/core/replicate/persister.hpp>

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/replicate/stage_job.hpp>

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
      const auto begun = std::chrono::steady_clock::now();
      bool good = true;
      for (const SlotKey key : keys) {
        if (!write(key, id)) good = false;
      }
      // The slots are given back even if another generation has begun by then.
      const auto give_back = [&] {
        engine_.loop.post([this, id, keys, good, generation, seconds = seconds_since(begun)] {
          written(id, keys, good, seconds, generation);
        });
      };
      try {
        give_back();
      } catch (const std::bad_alloc&) {  // the generation ends by it; the slots outlive that
        engine_.loop.fail(std::current_exception());
        give_back();
      }
    });
  } catch (...) {  // nothing was begun
    engine_.gate.persisting_ends();
    slots_.release_from_disk(keys);
    throw;
  }
}

bool Persister::write(SlotKey key, ImageId id) {
  try {
    const ReadLease lease = engine_.vault.read(key);
    // A file must be complete by itself, so a replica that borrows is not written.
    if (key.owner_rank != engine_.rank && lease.info().borrowed_bytes != 0) return true;
    // Older files are removed when all ranks have this one, so publish() proves each byte that it
    // writes.
    files_.publish(lease.info(), lease.image());
    return true;
  } catch (...) {  // this thread's boundary: the step stays complete in memory
    engine_.report.warn(
        "step " + std::to_string(id.step) +
        " is complete in memory but not on disk: " + text_of(std::current_exception()));
    return false;
  }
}

void Persister::written(ImageId id, const std::vector<SlotKey>& keys, bool good, double seconds,
                        std::uint64_t generation) {
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
  if (good && generation == engine_.present) engine_.feed(protocol::Persisted{id});
  engine_.gate.count([&](Stats& stats) {
    ++(good ? stats.persisted : stats.persist_failed);
    stats.persist_seconds = seconds;
  });
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
    try {
      files_.prune_older(older_than, keep);
    } catch (...) {  // they are in the way of nothing
      engine_.report.warn("cannot remove older images: " + text_of(std::current_exception()));
    }
  });
}

}  // namespace meshstage::replicate
