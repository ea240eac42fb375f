#include <meshstage/core/async/origin.hpp>

#include <unistd.h>

namespace meshstage {

ProcessOrigin::ProcessOrigin() noexcept : pid_(::getpid()) {}
bool ProcessOrigin::is_here() const noexcept { return pid_ == ::getpid(); }

}  // namespace meshstage
