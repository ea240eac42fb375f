#pragma once
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// The kinds of error between which a caller would act differently.
enum class ErrorKind : std::uint8_t {
  kInvalidArgument,    ///< The call itself is wrong; fix the program.
  kInvalidState,       ///< The object cannot do this now (closed, superseded, restaged step).
  kTimeout,            ///< The Store, or ranks that are to form a generation, did not come in time.
  kPeerLost,           ///< A peer died; `rank()` names it. Rejoin and recover.
  kCorruptData,        ///< Bytes do not match their digest or their format.
  kStructureMismatch,  ///< The state dict differs from the image; `path()` is the first difference.
  kOutOfMemory,  ///< No room; the message says needed, available, which limit, and the remedy.
  kIo,           ///< A system call failed; the message has path and errno.
  kNotFound,     ///< A path, key, file or module does not exist; the message lists what was tried.
  kUnrecoverable,  ///< No step is covered by every rank; the message names the ranks without an
                   ///< image.
  kCancelled,      ///< The operation was abandoned (its object was closed or destroyed).
  kPeerSilent,     ///< A peer was silent for the deadline; `rank()` names it where it is known.
                   ///< Rejoin and recover.
  kFenced,         ///< Another process has this rank's or this job's place. End this process.
};

/// "peer lost", "timeout", ...: the words that messages use.
MESHSTAGE_API std::string_view to_string(ErrorKind kind) noexcept;

/// Every exception this library throws. Catch a subclass below where you would act differently.
/// The fields are for programs. `what()` is for people and already contains the fields.
class MESHSTAGE_API Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message);

  [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }
  /// what() without the words for the kind: to build another error of.
  [[nodiscard]] std::string message() const;
  /// The rank the error is about: the one that died, was silent, or has no image.
  [[nodiscard]] std::optional<int> rank() const noexcept { return rank_; }
  [[nodiscard]] std::optional<std::uint64_t> step() const noexcept { return step_; }
  /// A path in the state dict ("model.h.0.weight") or in the file system; empty if none.
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  Error& with_rank(int rank) noexcept {
    rank_ = rank;
    return *this;
  }
  Error& with_step(std::uint64_t step) noexcept {
    step_ = step;
    return *this;
  }
  Error& with_path(std::string path) {
    path_ = std::move(path);
    return *this;
  }

 private:
  ErrorKind kind_;
  std::optional<int> rank_;
  std::optional<std::uint64_t> step_;
  std::string path_;
};

/// The generation has ended: a peer died (PeerLost) or was silent (PeerSilent). The state dict may
/// hold anything. Call Checkpointer::rejoin() and recover(), which go on from the newest complete
/// step.
class MESHSTAGE_API RejoinNeeded : public Error {
 protected:
  using Error::Error;
};

template <ErrorKind K>
class ErrorOf;

namespace detail {
template <ErrorKind K>
struct ErrorBase {
  using type = Error;
};
template <>
struct ErrorBase<ErrorKind::kPeerLost> {
  using type = RejoinNeeded;
};
template <>
struct ErrorBase<ErrorKind::kPeerSilent> {
  using type = RejoinNeeded;
};
template <>
struct ErrorBase<ErrorKind::kFenced> {
  using type = ErrorOf<ErrorKind::kInvalidState>;
};
}  // namespace detail

/// One subclass for each kind, so that `catch (const PeerLost&)` reads as it should.
/// `E(message)` constructs; fields are set with Error::with_*.
template <ErrorKind K>
class ErrorOf : public detail::ErrorBase<K>::type {
 public:
  explicit ErrorOf(const std::string& message) : ErrorOf(K, message) {}

 protected:
  ErrorOf(ErrorKind kind, const std::string& message) : detail::ErrorBase<K>::type(kind, message) {}
};

using InvalidArgument = ErrorOf<ErrorKind::kInvalidArgument>;
using InvalidState = ErrorOf<ErrorKind::kInvalidState>;
using Timeout = ErrorOf<ErrorKind::kTimeout>;
using PeerLost = ErrorOf<ErrorKind::kPeerLost>;
using PeerSilent = ErrorOf<ErrorKind::kPeerSilent>;
using CorruptData = ErrorOf<ErrorKind::kCorruptData>;
using StructureMismatch = ErrorOf<ErrorKind::kStructureMismatch>;
using OutOfMemory = ErrorOf<ErrorKind::kOutOfMemory>;
using IoError = ErrorOf<ErrorKind::kIo>;
using NotFound = ErrorOf<ErrorKind::kNotFound>;
using Unrecoverable = ErrorOf<ErrorKind::kUnrecoverable>;
using Cancelled = ErrorOf<ErrorKind::kCancelled>;
/// An InvalidState that no call of this process can mend: the others went on with a replacement for
/// this rank, or another start owns the job. End the process; do not rejoin.
using Fenced = ErrorOf<ErrorKind::kFenced>;

/// Throws the subclass of `kind` with these fields (for errors that crossed a wire, a thread or a
/// module's C table).
[[noreturn]] MESHSTAGE_API void throw_error(ErrorKind kind, const std::string& message,
                                            std::optional<int> rank = {},
                                            std::optional<std::uint64_t> step = {},
                                            std::string path = {});

/// IoError for a failed system call: "open /x/y: No space left on device (errno 28)".
/// ENOMEM and ENOSPC stay IoError; a caller that knows the limits turns them into OutOfMemory.
[[noreturn]] MESHSTAGE_API void throw_errno(std::string_view call, std::string_view path,
                                            int error_number);

/// An error of type E with its fields set: `throw make_error<PeerLost>("rank 2 died", 2);`.
template <class E>
[[nodiscard]] E make_error(const std::string& message, std::optional<int> rank = {},
                           std::optional<std::uint64_t> step = {}, std::string path = {}) {
  E e(message);
  if (rank) e.with_rank(*rank);
  if (step) e.with_step(*step);
  if (!path.empty()) e.with_path(std::move(path));
  return e;
}

}  // namespace meshstage
