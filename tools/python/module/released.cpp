#include "released.hpp"

#include <atomic>

namespace nb = nanobind;

namespace meshstage::python {
namespace {

struct Kept {
  Py_buffer buffer{};
  PyObject* object = nullptr;  // null: the buffer
  Kept* next = nullptr;
};

// A stack that takes no lock: a forked child may inherit it in any state.
std::atomic<Kept*> released{nullptr};

void release(Kept* kept) noexcept {
  kept->next = released.load(std::memory_order_relaxed);
  while (!released.compare_exchange_weak(kept->next, kept, std::memory_order_release,
                                         std::memory_order_relaxed)) {
  }
}

std::shared_ptr<const void> shared(std::unique_ptr<Kept> kept) {
  Kept* const raw = kept.release();
  // Where there is no memory for the count, the deleter has run.
  return std::shared_ptr<const Kept>(raw, [](Kept* k) { release(k); });
}

}  // namespace

std::shared_ptr<const void> keep(nb::handle object) {
  auto kept = std::make_unique<Kept>();
  kept->object = object.inc_ref().ptr();
  return shared(std::move(kept));
}

std::shared_ptr<const void> keep(const Py_buffer& buffer) {
  auto kept = std::make_unique<Kept>();
  kept->buffer = buffer;
  return shared(std::move(kept));
}

void release_all() noexcept {
  for (Kept* kept = released.exchange(nullptr, std::memory_order_acquire); kept != nullptr;) {
    const std::unique_ptr<Kept> owned(kept);
    kept = kept->next;
    if (owned->object != nullptr) {
      Py_DECREF(owned->object);
    } else {
      PyBuffer_Release(&owned->buffer);
    }
  }
}

}  // namespace meshstage::python
