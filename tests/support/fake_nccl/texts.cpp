// What the fake libnccl.so.2 says of itself and of errors.
#include <nccl.h>

#define MESHSTAGE_FAKE_EXPORT extern "C" __attribute__((visibility("default")))

MESHSTAGE_FAKE_EXPORT ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

MESHSTAGE_FAKE_EXPORT const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "in progress";
    case ncclSystemError:
      return "unhandled system error";
    default:
      return "an error, as the fake says";
  }
}
