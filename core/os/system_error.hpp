#pragma once
#include <string_view>

#include <meshstage/core/error/error.hpp>

namespace meshstage {

/// An IoError that keeps the errno of the failed call, for callers that act on it (ENOENT, ENOSPC).
/// The message has the form of throw_errno()'s: "open /x/y: No space left on device (errno 28)".
class MESHSTAGE_API SystemError : public IoError {
 public:
  SystemError(std::string_view call, std::string_view path, int error_number);
  [[nodiscard]] int error_number() const noexcept { return error_number_; }

 private:
  int error_number_;
};

}  // namespace meshstage
