#include <meshstage/core/error/error.hpp>

#include <string>
#include <system_error>

namespace meshstage {

std::string_view to_string(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      return "invalid argument";
    case ErrorKind::kInvalidState:
      return "invalid state";
    case ErrorKind::kTimeout:
      return "timeout";
    case ErrorKind::kPeerLost:
      return "peer lost";
    case ErrorKind::kCorruptData:
      return "corrupt data";
    case ErrorKind::kStructureMismatch:
      return "structure mismatch";
    case ErrorKind::kOutOfMemory:
      return "out of memory";
    case ErrorKind::kIo:
      return "i/o error";
    case ErrorKind::kNotFound:
      return "not found";
    case ErrorKind::kUnrecoverable:
      return "unrecoverable";
    case ErrorKind::kCancelled:
      return "cancelled";
    case ErrorKind::kPeerSilent:
      return "peer silent";
    case ErrorKind::kFenced:
      return "fenced";
  }
  return "unknown error";
}

Error::Error(ErrorKind kind, const std::string& message)
    : std::runtime_error(std::string(to_string(kind)) + ": " + message), kind_(kind) {}

std::string Error::message() const {
  const std::string_view text = what();
  return std::string(text.substr(to_string(kind_).size() + 2));
}

namespace {

template <ErrorKind K>
[[noreturn]] void throw_as(const std::string& message, std::optional<int> rank,
                           std::optional<std::uint64_t> step, std::string path) {
  throw make_error<ErrorOf<K>>(message, rank, step, std::move(path));
}

}  // namespace

void throw_error(ErrorKind kind, const std::string& message, std::optional<int> rank,
                 std::optional<std::uint64_t> step, std::string path) {
  switch (kind) {
#define MESHSTAGE_CASE(K) \
  case ErrorKind::K:      \
    throw_as<ErrorKind::K>(message, rank, step, std::move(path));
    MESHSTAGE_CASE(kInvalidArgument)
    MESHSTAGE_CASE(kInvalidState)
    MESHSTAGE_CASE(kTimeout)
    MESHSTAGE_CASE(kPeerLost)
    MESHSTAGE_CASE(kCorruptData)
    MESHSTAGE_CASE(kStructureMismatch)
    MESHSTAGE_CASE(kOutOfMemory)
    MESHSTAGE_CASE(kIo)
    MESHSTAGE_CASE(kNotFound)
    MESHSTAGE_CASE(kUnrecoverable)
    MESHSTAGE_CASE(kCancelled)
    MESHSTAGE_CASE(kPeerSilent)
    MESHSTAGE_CASE(kFenced)
#undef MESHSTAGE_CASE
  }
  throw Error(kind, message);
}

void throw_errno(std::string_view call, std::string_view path, int error_number) {
  std::string message(call);
  if (!path.empty()) message.append(" ").append(path);
  message += ": " + std::generic_category().message(error_number) + " (errno " +
             std::to_string(error_number) + ")";
  throw make_error<IoError>(message, {}, {}, std::string(path));
}

}  // namespace meshstage
