#pragma once
#include <sys/types.h>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// The process that made an object. A child made by fork() has a copy of the object, but none of
/// the threads that serve it, and a lock that such a thread held is never released in the child. So
/// an object that owns a thread, a connection, a lock or a file name acts in its destructor only
/// where `is_here()`; the child's copy does nothing and leaks.
class MESHSTAGE_API ProcessOrigin {
 public:
  ProcessOrigin() noexcept;
  /// True in the process that made this object, false in its forked children.
  [[nodiscard]] bool is_here() const noexcept;

 private:
  pid_t pid_;
};

/// A deleter for std::unique_ptr and std::shared_ptr: deletes in the process that made it, and
/// leaks in that process's forked children.
struct DeleteHere {
  ProcessOrigin origin{};
  template <class T>
  void operator()(T* object) const noexcept {
    if (origin.is_here()) delete object;
  }
};

}  // namespace meshstage
