#include "tests/support/failing_new.hpp"

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string_view>

namespace {

std::atomic<const char*> victims{nullptr};
std::atomic<int> countdown{0};

bool is_to_fail() {
  const char* const name = victims.load(std::memory_order_acquire);
  if (name == nullptr) return false;
  char mine[16] = "";
  if (pthread_getname_np(pthread_self(), mine, sizeof mine) != 0) return false;
  if (std::string_view(mine) != name) return false;
  if (countdown.fetch_sub(1) != 1) return false;
  victims = nullptr;
  return true;
}

void* allocate(std::size_t bytes) {
  if (is_to_fail()) throw std::bad_alloc();
  if (void* const at = std::malloc(bytes == 0 ? 1 : bytes)) return at;
  throw std::bad_alloc();
}

}  // namespace

namespace meshstage::test {

void fail_allocation(const char* thread, int nth) {
  countdown = nth;
  victims = thread;
}

bool allocation_failed() { return victims.exchange(nullptr) == nullptr; }

}  // namespace meshstage::test

void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
// A sanitizer's own would not be freed by what follows.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return std::malloc(bytes);
}
// Not inlined: else g++ takes them for a mismatch with a new that it did not inline.
[[gnu::noinline]] void operator delete(void* at) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete[](void* at) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete(void* at, std::size_t) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete[](void* at, std::size_t) noexcept { std::free(at); }
