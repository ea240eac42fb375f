#include <cstdint>
#include <new>
#include <string>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage {

Storage Storage::allocate(std::size_t nbytes) {
  constexpr std::align_val_t kAlignment{64};
  if (nbytes == 0) return wrap(nullptr, 0, nullptr);
  // More than any object may have is refused here: allocators that check themselves end the
  // program.
  void* data = nullptr;
  if (nbytes <= static_cast<std::size_t>(PTRDIFF_MAX)) {
    data = ::operator new(nbytes, kAlignment, std::nothrow);
  }
  if (data == nullptr) {
    throw OutOfMemory("a tensor storage of " + std::to_string(nbytes) +
                      " bytes cannot be allocated; free memory or shard the tensor");
  }
  std::shared_ptr<const void> owner(
      data, [](const void* p) { ::operator delete(const_cast<void*>(p), kAlignment); });
  return wrap(data, nbytes, std::move(owner));
}

Storage Storage::wrap(void* data, std::size_t nbytes, std::shared_ptr<const void> owner,
                      StorageTraits traits, Device device) {
  if (data == nullptr && nbytes != 0) {
    throw InvalidArgument("a storage of " + std::to_string(nbytes) + " bytes at a null pointer");
  }
  auto impl = std::make_shared<Impl>();
  impl->data = static_cast<std::byte*>(data);
  impl->nbytes = nbytes;
  impl->device = device;
  impl->traits = std::move(traits);
  impl->owner = std::move(owner);
  return Storage(std::move(impl));
}

Storage Storage::from_blob(void* data, std::size_t nbytes, std::function<void(void*)> deleter,
                           StorageTraits traits, Device device) {
  // The owner's control block runs the deleter once, also when making it or the storage throws.
  std::shared_ptr<const void> owner(data, [deleter = std::move(deleter)](const void* p) {
    if (deleter) deleter(const_cast<void*>(p));
  });
  return wrap(data, nbytes, std::move(owner), std::move(traits), device);
}

}  // namespace meshstage
