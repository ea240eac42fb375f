#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

/// The interface between libmeshstage and the module libmeshstage_gloo.so: one table of functions
/// on plain data. No exception, no C++ type and no memory changes owner; handles are made and
/// released by the module. A change of anything here raises kGlooModuleAbi.
namespace meshstage::gloo_module {

inline constexpr std::uint32_t kGlooModuleAbi = 3;
inline constexpr char kTableSymbol[] = "meshstage_gloo_module_table";

/// The bytes that a connecting peer sends first, so that no stranger's connection is taken for its
/// own.
inline constexpr std::size_t kNonceBytes = 16;
using Nonce = std::array<unsigned char, kNonceBytes>;

/// The result of a call. On kFailed the error text was written.
enum Result : int { kDone = 0, kInterrupted = 1, kFailed = 2 };

/// A failed call writes its reason here, always ended by a zero byte.
struct ErrorText {
  char text[512];
};

struct Group;     // a Gloo device, a context and its pairs
struct Transfer;  // an unbound buffer with one operation posted

struct Table {
  std::uint32_t abi;
  const char* version;  ///< For people: "Gloo 0.5.0".

  /// Makes a device that listens on `host` and a context with a pair (and its listening socket) for
  /// each of `peers`; `nonces` has kNonceBytes for each of them. Null on failure.
  Group* (*open)(const char* host, int rank, int size, const int* peers,
                 const unsigned char* nonces, std::size_t peer_count, ErrorText* error);
  /// The address of the pair for `peer`, at most `capacity` bytes of it; returns its length.
  std::size_t (*address)(Group* group, int peer, unsigned char* bytes, std::size_t capacity);
  /// Blocks until connected, refused, or close_pairs() was called by another thread (also kDone).
  /// `nonce`: the peer's, for this rank.
  Result (*connect)(Group* group, int peer, const unsigned char* bytes, std::size_t length,
                    const unsigned char* nonce, ErrorText* error);
  /// Both post an operation and return. Null on failure. `slot` is matched with the peer's; lengths
  /// must be equal.
  Transfer* (*send)(Group* group, int peer, std::uint64_t slot, const void* bytes,
                    std::size_t length, ErrorText* error);
  Transfer* (*receive)(Group* group, int peer, std::uint64_t slot, void* target, std::size_t length,
                       ErrorText* error);
  /// Blocks until the operation is complete, failed, or interrupt() was called, before or after.
  Result (*wait)(Transfer* transfer, ErrorText* error);
  /// Makes the running wait of `transfer`, or the next one, return kInterrupted. From any thread.
  void (*interrupt)(Transfer* transfer);
  /// A count that rises with the bytes that came from `peer` or left for it. From any thread.
  std::uint64_t (*moved)(Group* group, int peer);
  /// Returns after the last access to the transfer's memory.
  void (*release)(Transfer* transfer);
  /// Closes every connection and listening socket, from any thread. When it returns the group reads
  /// and writes nothing any more. It wakes no waits: interrupt() them. Idempotent.
  void (*close_pairs)(Group* group);
  /// Ends the thread and frees everything. All transfers must have been released.
  void (*destroy)(Group* group);
};

using GetTable = const Table* (*)();

}  // namespace meshstage::gloo_module
