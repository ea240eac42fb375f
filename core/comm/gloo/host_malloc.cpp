// Part of the module libmeshstage_gloo.so. A module opened with RTLD_DEEPBIND looks for malloc and
// free among its own libraries first, and finds the C library's, even where the host program
// brought another allocator along (a preloaded jemalloc): memory that one allocates and the other
// frees ends the process. So the module has the six functions itself, and they go to the host's.
// Opened without RTLD_DEEPBIND the host's are found first anyway, and these are not called.
//
// The host's functions are looked up at the first call, which may be before any constructor has
// run; dlsym() allocates only to report an error, and these names are always there.
#include <dlfcn.h>

#include <atomic>
#include <cstddef>

namespace {

template <class F>
F host(std::atomic<F>& known, const char* name) {
  F function = known.load(std::memory_order_acquire);
  if (function == nullptr) {
    function = reinterpret_cast<F>(dlsym(dlopen(nullptr, RTLD_LAZY), name));
    known.store(function, std::memory_order_release);
  }
  return function;
}

std::atomic<void* (*)(std::size_t)> host_malloc;
std::atomic<void* (*)(std::size_t, std::size_t)> host_calloc;
std::atomic<void* (*)(void*, std::size_t)> host_realloc;
std::atomic<void (*)(void*)> host_free;
std::atomic<int (*)(void**, std::size_t, std::size_t)> host_posix_memalign;
std::atomic<void* (*)(std::size_t, std::size_t)> host_aligned_alloc;

}  // namespace

extern "C" {

#define MESHSTAGE_MODULE_EXPORT __attribute__((visibility("default")))

MESHSTAGE_MODULE_EXPORT void* malloc(std::size_t size) noexcept {
  return host(host_malloc, "malloc")(size);
}
MESHSTAGE_MODULE_EXPORT void* calloc(std::size_t count, std::size_t size) noexcept {
  return host(host_calloc, "calloc")(count, size);
}
MESHSTAGE_MODULE_EXPORT void* realloc(void* old, std::size_t size) noexcept {
  return host(host_realloc, "realloc")(old, size);
}
MESHSTAGE_MODULE_EXPORT void free(void* memory) noexcept { return host(host_free, "free")(memory); }
MESHSTAGE_MODULE_EXPORT int posix_memalign(void** result, std::size_t alignment,
                                           std::size_t size) noexcept {
  return host(host_posix_memalign, "posix_memalign")(result, alignment, size);
}
MESHSTAGE_MODULE_EXPORT void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return host(host_aligned_alloc, "aligned_alloc")(alignment, size);
}

}  // extern "C"
