// Stands in for Gloo's header of this name, which Debian's libgloo-dev leaves out although its
// gloo/transport/tcp/pair.h includes it. Used only where the real one is missing. What crosses into
// the library is the layout: one smart pointer each, of an object that belongs to somebody else.
#pragma once
#include <memory>

namespace gloo {

template <class T>
class WeakNonOwningPtr;

/// The object's own handle of itself. Gloo makes and destroys all of them, so only declared.
template <class T>
class ShareableNonOwningPtr final {
 public:
  explicit ShareableNonOwningPtr(T* object);
  ShareableNonOwningPtr(const ShareableNonOwningPtr&) = delete;
  ShareableNonOwningPtr& operator=(const ShareableNonOwningPtr&) = delete;
  ~ShareableNonOwningPtr();

 private:
  friend class WeakNonOwningPtr<T>;
  std::shared_ptr<T> ptr_;
};

/// Refers to an object that may be gone.
template <class T>
class WeakNonOwningPtr final {
 public:
  WeakNonOwningPtr() = default;
  explicit WeakNonOwningPtr(const ShareableNonOwningPtr<T>& object) : ptr_(object.ptr_) {}
  /// Whether it ever referred to one: an empty weak pointer is equivalent to no other.
  explicit operator bool() const noexcept {
    const std::weak_ptr<T> empty;
    return ptr_.owner_before(empty) || empty.owner_before(ptr_);
  }

 private:
  std::weak_ptr<T> ptr_;
};

/// Keeps the object from being destroyed while it lasts. In signatures only.
template <class T>
class NonOwningPtr;

}  // namespace gloo
