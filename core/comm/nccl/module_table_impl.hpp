#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

/// The interface between libmeshstage and the module libmeshstage_nccl.so: one table of functions
/// on plain data. No exception, no C++ type and no memory changes owner; handles are made and
/// closed by the module. A change of anything here raises kNcclModuleAbi.
namespace meshstage::nccl_module {

inline constexpr std::uint32_t kNcclModuleAbi = 1;
inline constexpr char kTableSymbol[] = "meshstage_nccl_module_table";

/// What rank 0 makes and every rank needs to connect.
inline constexpr std::size_t kIdBytes = 128;

/// The result of a call. On kFailed and kPeerFailed the error text was written. kPeerFailed: the
/// fault is at another rank, as far as NCCL knows.
enum Result : int { kDone = 0, kInProgress = 1, kFailed = 2, kPeerFailed = 3 };

/// A failed call writes its reason here, always ended by a zero byte.
struct ErrorText {
  char text[512];
};

/// "2.28.9" for NCCL's number of a version, 22809.
inline std::string version_text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

/// The NCCL of this process; opening it makes no context and no thread.
struct Probe {
  std::int32_t version;  ///< 22809 for 2.28.9; 0 if there is none.
  char path[512];        ///< The file of the library; empty if there is none.
  char problem[512];     ///< Why it cannot be used; empty if it can.
};

enum class Kind : std::int32_t {
  kSend,
  kReceive,
  kBroadcast,
  kAllGather,
  kAllReduce,
  kReduceScatter
};
/// The element types of collectives::Element, in its order.
inline constexpr std::int32_t kBytes = 0;

/// One operation; addresses are of the communicator's device.
struct Operation {
  Kind kind;
  std::int32_t peer;     ///< Of a send or receive; the root of a broadcast.
  const void* source;    ///< Not of a receive.
  void* target;          ///< Not of a send.
  std::uint64_t count;   ///< Elements, as NCCL counts them for this kind.
  std::int32_t element;  ///< A collectives::Element as a number; kBytes for plain bytes.
  std::int32_t reduce;   ///< A collectives::ReduceOp as a number.
};

struct Communicator;  // a context on the owner thread, a stream and an ncclComm_t

/// Threads: probe() may be called by any. One thread, the communicator's owner, makes all other
/// calls, from open() to close(): NCCL allows no call beside an abort.
struct Table {
  std::uint32_t abi;
  const char* version;  ///< For people: "NCCL 2.28.9 headers".

  void (*probe)(Probe* probe);
  /// Makes the device's primary context current on this thread, and a stream on it that waits for
  /// no other stream. A capture elsewhere does not forbid what this thread does until close().
  Result (*open)(int device, Communicator** communicator, ErrorText* error);
  /// Writes kIdBytes. Rank 0 alone; it listens from then on.
  Result (*make_id)(Communicator* communicator, unsigned char* id, ErrorText* error);
  /// Begins to connect; state() says when it is done.
  Result (*connect)(Communicator* communicator, int rank, int size, const unsigned char* id,
                    ErrorText* error);
  /// kDone: the last call is complete and nothing has failed so far. kInProgress: nothing may be
  /// launched or recorded yet. kFailed, kPeerFailed: nothing helps but abort(); the text is what
  /// NCCL says of it.
  Result (*state)(Communicator* communicator, ErrorText* error);
  /// Issues the operations as one group on the stream. kInProgress: state() says when it is issued.
  Result (*launch)(Communicator* communicator, const Operation* operations, std::size_t count,
                   ErrorText* error);
  /// The stream's number, as in StreamHandle.
  std::uint64_t (*stream)(Communicator* communicator);
  /// Begins an end in order, after all work was done; state() says when it is complete.
  Result (*finish)(Communicator* communicator, ErrorText* error);
  /// Ends every operation, also one that waits for a peer. The stream's work reports success then,
  /// done or not. Nothing but stream() and close() may follow.
  Result (*abort)(Communicator* communicator, ErrorText* error);
  /// Frees everything, after finish() was complete, abort(), or a connect() that never began. The
  /// thread is as it was before open().
  void (*close)(Communicator* communicator);
};

using GetTable = const Table* (*)();

}  // namespace meshstage::nccl_module
