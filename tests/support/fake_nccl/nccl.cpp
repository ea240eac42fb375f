// The fake libnccl.so.2, against NCCL's own header. See control.hpp for its rules.
#include <cuda.h>
#include <dlfcn.h>
#include <nccl.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/fake_cuda/control.hpp"
#include "tests/support/fake_nccl/control.hpp"
#include "tests/support/fake_nccl/reductions.hpp"
#include "tests/support/fake_nccl/rendezvous.hpp"

using meshstage::collectives::Element;
using meshstage::fake_nccl::Bytes;
using meshstage::fake_nccl::find_element;
using meshstage::fake_nccl::reduced;
using meshstage::fake_nccl::Rendezvous;
using meshstage::fake_nccl::size_of;
namespace fake_cuda = meshstage::fake_cuda;

// One operation of one rank, from its call to its end.
struct Operation {
  ncclComm* comm = nullptr;
  cudaStream_t stream = nullptr;
  std::string own;                  // what this rank puts into the folder; empty: nothing
  std::vector<std::string> needed;  // what it waits for, by rank
  const void* source = nullptr;
  std::size_t source_bytes = 0;
  void* target = nullptr;
  std::function<Bytes(const std::vector<Bytes>&)> result;  // null: nothing is written
  bool arrived = false;
  bool done = false;
  bool aborted = false;
};

struct ncclComm {
  ncclComm(const std::string& path, int the_rank, int the_size, int the_device)
      : meeting(path, the_rank, the_size), rank(the_rank), size(the_size), device(the_device) {}
  Rendezvous meeting;
  int rank;
  int size;
  int device;
  std::thread::id owner = std::this_thread::get_id();
  bool connecting = true;
  bool finalized = false;
  int polls_left = 2;  // until the state is success
  ncclResult_t failed = ncclSuccess;
  std::string last_error;
  std::uint64_t collectives = 0;
  std::map<std::pair<int, int>, std::uint64_t> messages;
  std::vector<std::shared_ptr<Operation>> not_issued;  // until the state is success
  std::vector<std::shared_ptr<Operation>> issued;
  std::uint64_t polls = 0;
};

namespace {

const fake_cuda::Streams& cuda() {
  static const fake_cuda::Streams& streams = []() -> const fake_cuda::Streams& {
    void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    const auto get =
        library == nullptr
            ? nullptr
            : reinterpret_cast<fake_cuda::GetStreams>(::dlsym(library, fake_cuda::kStreamsSymbol));
    if (get == nullptr) {
      std::fputs("the fake NCCL needs the fake libcuda.so.1\n", stderr);
      std::abort();
    }
    return *get();
  }();
  return streams;
}

// The fake driver's lock is this fake's, too.
class Lock {
 public:
  Lock() { cuda().lock(true); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() { cuda().lock(false); }
};

struct Fake {
  std::uint64_t calls = 0;
  std::uint64_t fail_at = 0;
  ncclResult_t fail_with = ncclSuccess;
  bool held = false;
  std::set<ncclComm*> live;
  std::vector<std::unique_ptr<ncclComm>> gone;  // kept, so that a call for one is always found
  // The operations of a rank over all of its communicators, in the order of their issue. The ranks
  // that are threads of this process are told apart by their number.
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Operation>>> by_rank;
};
Fake& fake() {
  static Fake* const one = new Fake;
  return *one;
}

// This thread's group: what was called since ncclGroupStart.
thread_local int group_depth = 0;
thread_local std::vector<std::shared_ptr<Operation>> group;

ncclResult_t counted(ncclComm* comm) {
  auto& all = fake();
  ++all.calls;
  if (all.fail_at == 0 || --all.fail_at != 0) return ncclSuccess;
  if (comm != nullptr) {
    comm->failed = all.fail_with;
    comm->last_error = "made to fail";
  }
  return all.fail_with;
}

// What every call for a communicator begins with.
template <class F>
ncclResult_t enter(const char* name, ncclComm* comm, F&& f, bool ends = false) {
  const Lock lock;
  if (!fake().live.contains(comm)) {
    cuda().violate(std::string(name) + " for a communicator that is gone");
    return ncclInvalidArgument;
  }
  if (comm->owner != std::this_thread::get_id())
    cuda().violate(std::string(name) + " by another thread than the communicator's");
  if (const auto result = counted(comm); result != ncclSuccess) {
    if (ends) f();  // an end takes effect even if it fails
    return result;
  }
  return f();
}

bool in_progress(const ncclComm& comm) { return comm.connecting || comm.polls_left > 0; }

std::string name_of(const char* kind, int a, int b, std::uint64_t number) {
  return std::string(kind) + "-" + std::to_string(a) + "-" + std::to_string(b) + "-" +
         std::to_string(number);
}

// Whether the operation, whose turn on its stream has come, may happen.
bool gate(Operation& operation) {
  if (operation.aborted) return true;
  if (fake().held) return false;
  auto& queue = fake().by_rank[{operation.comm->device, operation.comm->rank}];
  while (!queue.empty() && (queue.front()->done || queue.front()->aborted)) queue.pop_front();
  if (!queue.empty() && queue.front()->comm != operation.comm) return false;
  auto& meeting = operation.comm->meeting;
  if (!operation.arrived) {
    operation.arrived = true;
    if (!operation.own.empty()) {
      const auto* const from = cuda().reach(operation.source, operation.source_bytes);
      if (from == nullptr) {
        cuda().violate("an operation of NCCL reads memory that was freed");
        return false;
      }
      meeting.put(operation.own, Bytes(from, from + operation.source_bytes));
    }
  }
  return std::all_of(operation.needed.begin(), operation.needed.end(),
                     [&](const std::string& name) { return meeting.get(name).has_value(); });
}

void happen(Operation& operation) {
  if (operation.aborted) return;
  operation.done = true;
  auto& meeting = operation.comm->meeting;
  std::vector<Bytes> parts;
  for (const auto& name : operation.needed) parts.push_back(meeting.get(name).value_or(Bytes()));
  if (!operation.result) return;
  const Bytes result = operation.result(parts);
  auto* const to = cuda().reach(operation.target, result.size());
  if (to == nullptr) return cuda().violate("an operation of NCCL writes memory that was freed");
  std::memcpy(to, result.data(), result.size());
}

void issue_what_waits(ncclComm& comm) {
  for (const auto& operation : std::exchange(comm.not_issued, {})) {
    fake().by_rank[{comm.device, comm.rank}].push_back(operation);
    comm.issued.push_back(operation);
    if (!cuda().issue(
            operation->stream, [operation] { return gate(*operation); },
            [operation] { happen(*operation); })) {
      cuda().violate("an operation of NCCL on a stream that is no stream");
    }
  }
}

ncclResult_t end_group() {
  auto operations = std::exchange(group, {});
  if (operations.empty()) return ncclSuccess;
  for (auto& operation : operations) operation->comm->not_issued.push_back(operation);
  for (auto& operation : operations) operation->comm->polls_left = 2;
  return ncclInProgress;
}

ncclResult_t call(Operation operation) {
  auto& comm = *operation.comm;
  if (in_progress(comm))
    cuda().violate("an operation while the communicator's state is in progress");
  if (comm.finalized) cuda().violate("an operation after ncclCommFinalize");
  if ((operation.source != nullptr &&
       cuda().reach(operation.source, operation.source_bytes) == nullptr) ||
      (operation.target != nullptr && cuda().reach(operation.target, 1) == nullptr)) {
    cuda().violate("an operation of NCCL on memory that is not the device's");
    return ncclInvalidArgument;
  }
  group.push_back(std::make_shared<Operation>(std::move(operation)));
  return group_depth > 0 ? ncclSuccess : end_group();
}

Operation collective(ncclComm* comm, const void* source, std::size_t source_bytes, void* target,
                     cudaStream_t stream) {
  const auto number = comm->collectives++;
  Operation operation;
  operation.comm = comm;
  operation.stream = stream;
  operation.own = name_of("all", comm->rank, comm->rank, number);
  for (int r = 0; r < comm->size; ++r) operation.needed.push_back(name_of("all", r, r, number));
  operation.source = source;
  operation.source_bytes = source_bytes;
  operation.target = target;
  return operation;
}

ncclResult_t poll(ncclComm& comm) {
  if (comm.failed != ncclSuccess) return comm.failed;
  if (++comm.polls % 16 == 0 && !comm.finalized && comm.meeting.lost_a_rank()) {
    comm.last_error = "remote process exited";
    return comm.failed = ncclRemoteError;
  }
  if (comm.connecting) {
    if (!comm.meeting.complete()) return ncclInProgress;
    comm.connecting = false;
    comm.polls_left = 2;
  }
  if (comm.polls_left > 0 && --comm.polls_left > 0) return ncclInProgress;
  issue_what_waits(comm);
  return ncclSuccess;
}

void forget(ncclComm* comm) {
  comm->meeting.leave();
  fake().live.erase(comm);
  fake().gone.emplace_back(comm);
  // Operations that are on streams still name it, too; a communicator is small.
}

constexpr meshstage::fake_nccl::Control kControl{
    [] {
      const Lock lock;
      fake().calls = 0;
      fake().fail_at = 0;
      fake().held = false;
      fake().by_rank.clear();
    },
    [](std::uint64_t n, int result) {
      const Lock lock;
      fake().fail_at = n;
      fake().fail_with = static_cast<ncclResult_t>(result);
    },
    [](bool held) {
      const Lock lock;
      fake().held = held;
    },
    [] {
      const Lock lock;
      std::uint64_t count = 0;
      for (const auto* comm : fake().live) {
        for (const auto& one : comm->issued) count += one->done || one->aborted ? 0U : 1U;
      }
      return count;
    },
    [] {
      const Lock lock;
      return fake().calls;
    },
    [] {
      const Lock lock;
      return static_cast<std::uint64_t>(fake().live.size());
    }};

}  // namespace

#define MESHSTAGE_FAKE_EXPORT extern "C" __attribute__((visibility("default")))

MESHSTAGE_FAKE_EXPORT const char* ncclGetLastError(ncclComm_t comm) {
  const Lock lock;
  if (comm == nullptr) return "";
  if (!fake().live.contains(comm)) {
    cuda().violate("ncclGetLastError after the communicator's end");
    return "";
  }
  return comm->last_error.c_str();
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const Lock lock;
  if (const auto result = counted(nullptr); result != ncclSuccess) return result;
  const auto path = Rendezvous::make();
  if (path.empty() || path.size() >= sizeof(id->internal)) return ncclSystemError;
  std::memset(id, 0, sizeof(*id));
  std::memcpy(id->internal, path.data(), path.size());
  return ncclSuccess;
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int size,
                                                          ncclUniqueId id, int rank,
                                                          ncclConfig_t* config) {
  const Lock lock;
  *out = nullptr;
  if (const auto result = counted(nullptr); result != ncclSuccess) return result;
  if (config == nullptr || config->size != sizeof(ncclConfig_t) || config->magic != 0xcafebeef)
    return ncclInvalidArgument;
  if (config->blocking != 0) cuda().violate("a communicator that blocks");
  const int device = cuda().current_device();
  if (device < 0) {
    cuda().violate("a communicator without a device");
    return ncclUnhandledCudaError;
  }
  *out = new ncclComm(id.internal, rank, size, device);
  fake().live.insert(*out);
  return ncclInProgress;
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  return enter("ncclCommGetAsyncError", comm, [&] {
    *state = poll(*comm);
    return ncclSuccess;
  });
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  return enter("ncclCommFinalize", comm, [&] {
    if (in_progress(*comm)) cuda().violate("ncclCommFinalize while the state is in progress");
    comm->finalized = true;
    comm->polls_left = 2;
    return ncclInProgress;
  });
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  return enter(
      "ncclCommDestroy", comm,
      [&] {
        if (!comm->finalized || (in_progress(*comm) && comm->failed == ncclSuccess))
          cuda().violate("ncclCommDestroy before ncclCommFinalize was complete");
        forget(comm);
        return ncclSuccess;
      },
      true);
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclCommAbort(ncclComm_t comm) {
  return enter(
      "ncclCommAbort", comm,
      [&] {
        for (const auto& operation : comm->issued) operation->aborted = !operation->done;
        comm->not_issued.clear();
        forget(comm);
        return ncclSuccess;
      },
      true);
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0) return ncclSuccess;
  const Lock lock;
  if (const auto result = counted(group.empty() ? nullptr : group.front()->comm);
      result != ncclSuccess) {
    group.clear();
    return result;
  }
  return end_group();
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclSend(const void* source, size_t count, ncclDataType_t type,
                                            int peer, ncclComm_t comm, cudaStream_t stream) {
  return enter("ncclSend", comm, [&] {
    Element element{};
    if (!find_element(type, &element) || peer < 0 || peer >= comm->size) return ncclInvalidArgument;
    const auto number = comm->messages[{comm->rank, peer}]++;
    Operation operation;
    operation.comm = comm;
    operation.stream = stream;
    operation.own = name_of("message", comm->rank, peer, number);
    operation.needed.push_back(name_of("taken", comm->rank, peer, number));
    operation.source = source;
    operation.source_bytes = count * size_of(element);
    return call(std::move(operation));
  });
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclRecv(void* target, size_t count, ncclDataType_t type,
                                            int peer, ncclComm_t comm, cudaStream_t stream) {
  return enter("ncclRecv", comm, [&] {
    Element element{};
    if (!find_element(type, &element) || peer < 0 || peer >= comm->size) return ncclInvalidArgument;
    const auto number = comm->messages[{peer, comm->rank}]++;
    const auto bytes = count * size_of(element);
    Operation operation;
    operation.comm = comm;
    operation.stream = stream;
    operation.needed.push_back(name_of("message", peer, comm->rank, number));
    operation.target = target;
    operation.result = [comm, peer, number, bytes](const std::vector<Bytes>& parts) {
      if (parts.front().size() != bytes) cuda().violate("a send and a receive of other lengths");
      comm->meeting.put(name_of("taken", peer, comm->rank, number), {});
      comm->meeting.remove(name_of("message", peer, comm->rank, number));
      Bytes result = parts.front();
      result.resize(bytes);
      return result;
    };
    return call(std::move(operation));
  });
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclBroadcast(const void* source, void* target, size_t count,
                                                 ncclDataType_t type, int root, ncclComm_t comm,
                                                 cudaStream_t stream) {
  return enter("ncclBroadcast", comm, [&] {
    Element element{};
    if (!find_element(type, &element) || root < 0 || root >= comm->size) return ncclInvalidArgument;
    auto operation = collective(comm, source, count * size_of(element), target, stream);
    operation.result = [root](const std::vector<Bytes>& parts) {
      return parts[static_cast<std::size_t>(root)];
    };
    return call(std::move(operation));
  });
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclAllGather(const void* source, void* target, size_t count,
                                                 ncclDataType_t type, ncclComm_t comm,
                                                 cudaStream_t stream) {
  return enter("ncclAllGather", comm, [&] {
    Element element{};
    if (!find_element(type, &element)) return ncclInvalidArgument;
    auto operation = collective(comm, source, count * size_of(element), target, stream);
    operation.result = [](const std::vector<Bytes>& parts) {
      Bytes result;
      for (const auto& part : parts) result.insert(result.end(), part.begin(), part.end());
      return result;
    };
    return call(std::move(operation));
  });
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclAllReduce(const void* source, void* target, size_t count,
                                                 ncclDataType_t type, ncclRedOp_t op,
                                                 ncclComm_t comm, cudaStream_t stream) {
  return enter("ncclAllReduce", comm, [&] {
    Element element{};
    if (!find_element(type, &element)) return ncclInvalidArgument;
    auto operation = collective(comm, source, count * size_of(element), target, stream);
    operation.result = [element, op](const std::vector<Bytes>& parts) {
      return reduced(parts, element, op);
    };
    return call(std::move(operation));
  });
}

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclReduceScatter(const void* source, void* target, size_t count,
                                                     ncclDataType_t type, ncclRedOp_t op,
                                                     ncclComm_t comm, cudaStream_t stream) {
  return enter("ncclReduceScatter", comm, [&] {
    Element element{};
    if (!find_element(type, &element)) return ncclInvalidArgument;
    const auto bytes = count * size_of(element);
    auto operation =
        collective(comm, source, bytes * static_cast<std::size_t>(comm->size), target, stream);
    operation.result = [element, op, bytes, rank = comm->rank](const std::vector<Bytes>& parts) {
      const auto all = reduced(parts, element, op);
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(bytes) * rank;
      return Bytes(begin, begin + static_cast<std::ptrdiff_t>(bytes));
    };
    return call(std::move(operation));
  });
}

MESHSTAGE_FAKE_EXPORT const meshstage::fake_nccl::Control* meshstage_fake_nccl_control() {
  return &kControl;
}
