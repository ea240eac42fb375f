#include "tests/support/cuda.hpp"

#include <cuda.h>
#include <dlfcn.h>
#include <algorithm>

#include <cudaTypedefs.h>
#include <cstdlib>
#include <stdexcept>

#include "tests/support/catch.hpp"

namespace meshstage::test {

struct Cuda::Driver {
  PFN_cuInit_v2000 init;
  PFN_cuDevicePrimaryCtxRetain_v7000 retain;
  PFN_cuCtxPushCurrent_v4000 push;
  PFN_cuCtxPopCurrent_v4000 pop;
  PFN_cuMemAlloc_v3020 alloc;
  PFN_cuMemFree_v3020 free;
  PFN_cuMemcpyHtoD_v3020 to_device;
  PFN_cuMemcpyDtoH_v3020 to_host;
  PFN_cuMemsetD8Async_v3020 set;
  PFN_cuStreamCreate_v2000 stream_create;
  PFN_cuStreamDestroy_v4000 stream_destroy;
  PFN_cuStreamSynchronize_v2000 synchronize;
  PFN_cuStreamBeginCapture_v10010 begin_capture;
  PFN_cuStreamEndCapture_v10000 end_capture;
};

namespace {

void check(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return;
  throw std::runtime_error(std::string(call) + " gave " + std::to_string(static_cast<int>(result)));
}

// Never closed: the module finds the same library by its name.
void* library() {
  static void* const handle = [] {
    void* const found =
        ::dlopen(Cuda::real() ? "libcuda.so.1" : MESHSTAGE_FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
    if (found == nullptr) throw std::runtime_error(::dlerror());
    return found;
  }();
  return handle;
}

template <class F>
void find(F& function, const char* name, int version) {
  const auto get =
      reinterpret_cast<PFN_cuGetProcAddress_v12000>(::dlsym(library(), "cuGetProcAddress_v2"));
  if (get == nullptr) throw std::runtime_error("no cuGetProcAddress_v2");
  void* found = nullptr;
  CUdriverProcAddressQueryResult status{};
  check(get(name, &found, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &status), name);
  if (found == nullptr) throw std::runtime_error(std::string("no ") + name);
  function = reinterpret_cast<F>(found);
}

CUdeviceptr address(const void* memory) { return reinterpret_cast<CUdeviceptr>(memory); }
CUstream handle(StreamHandle stream) { return reinterpret_cast<CUstream>(stream.value); }

// A device's primary context on this thread.
class Current {
 public:
  Current(const Cuda::Driver& driver, int device) : driver_(driver) {
    CUcontext context = nullptr;
    check(driver.retain(&context, device), "cuDevicePrimaryCtxRetain");
    check(driver.push(context), "cuCtxPushCurrent");
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current() {
    CUcontext mine = nullptr;
    driver_.pop(&mine);
  }

 private:
  const Cuda::Driver& driver_;
};

}  // namespace

bool Cuda::real() {
  const char* const variable = std::getenv("MESHSTAGE_TEST_CUDA");
  return variable != nullptr && std::string(variable) == "real";
}

const fake_cuda::Control& Cuda::fake() {
  const auto get =
      reinterpret_cast<fake_cuda::GetControl>(::dlsym(library(), fake_cuda::kControlSymbol));
  if (get == nullptr) throw std::runtime_error("not the fake driver");
  return *get();
}

Cuda::Cuda(std::uint64_t seed) : driver_(std::make_unique<Driver>()) {
  if (!real()) fake().reset(seed);
  auto& d = *driver_;
  find(d.init, "cuInit", 2000);
  find(d.retain, "cuDevicePrimaryCtxRetain", 7000);
  find(d.push, "cuCtxPushCurrent", 4000);
  find(d.pop, "cuCtxPopCurrent", 4000);
  find(d.alloc, "cuMemAlloc", 3020);
  find(d.free, "cuMemFree", 3020);
  find(d.to_device, "cuMemcpyHtoD", 3020);
  find(d.to_host, "cuMemcpyDtoH", 3020);
  find(d.set, "cuMemsetD8Async", 3020);
  find(d.stream_create, "cuStreamCreate", 2000);
  find(d.stream_destroy, "cuStreamDestroy", 4000);
  find(d.synchronize, "cuStreamSynchronize", 2000);
  find(d.begin_capture, "cuStreamBeginCapture", 10010);
  find(d.end_capture, "cuStreamEndCapture", 10000);
  check(d.init(0), "cuInit");
  CUcontext context = nullptr;
  check(d.retain(&context, 0), "cuDevicePrimaryCtxRetain");
  check(d.push(context), "cuCtxPushCurrent");
}

Cuda::~Cuda() {
  if (!real()) {
    fake().hold(false);
    fake().fail_call(0, 0);
    const std::string broken = fake().violations();
    if (!forgiven_) CHECK(broken == "");
  }
  CUcontext mine = nullptr;
  driver_->pop(&mine);
}

std::string Cuda::forgive() {
  forgiven_ = true;
  return fake().violations();
}

Tensor Cuda::tensor(std::int64_t bytes, unsigned char value, std::size_t offset, Device device) {
  CUdeviceptr memory = 0;
  const auto size = static_cast<std::size_t>(bytes);
  const Current current(*driver_, device.index);
  check(driver_->alloc(&memory, offset + std::max<std::size_t>(size, 1)), "cuMemAlloc");
  auto* const begin = reinterpret_cast<std::byte*>(memory);
  const std::shared_ptr<const void> owner(begin,
                                          [driver = *driver_, index = device.index](const void* p) {
                                            const Current back(driver, index);
                                            driver.free(address(p));
                                          });
  const auto tensor = Tensor::on_storage(
      Storage::wrap(begin + offset, size, owner, {.external = true}, device), DType::kU8, {bytes});
  write(tensor, std::vector<std::byte>(size, std::byte{value}));
  return tensor;
}

void Cuda::write(const Tensor& tensor, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const Current current(*driver_, tensor.device().index);
  check(driver_->to_device(address(tensor.storage().data()), bytes.data(), bytes.size()),
        "cuMemcpyHtoD");
}

Tensor Cuda::to_host(const Tensor& tensor) {
  const auto bytes = read(tensor);
  const Storage storage = Storage::allocate(bytes.size());
  std::copy(bytes.begin(), bytes.end(), storage.data());
  return Tensor::on_storage(storage, tensor.dtype(), tensor.shape(), tensor.strides(),
                            tensor.storage_offset());
}

std::vector<std::byte> Cuda::read(const Tensor& tensor) {
  std::vector<std::byte> bytes(tensor.storage().nbytes());
  if (bytes.empty()) return bytes;
  const Current current(*driver_, tensor.device().index);
  check(driver_->to_host(bytes.data(), address(tensor.storage().data()), bytes.size()),
        "cuMemcpyDtoH");
  return bytes;
}

StreamHandle Cuda::open_stream() {
  const Current current(*driver_, 0);
  CUstream stream = nullptr;
  check(driver_->stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  return {reinterpret_cast<std::uint64_t>(stream)};
}

void Cuda::close_stream(StreamHandle stream) {
  const Current current(*driver_, 0);
  check(driver_->stream_destroy(handle(stream)), "cuStreamDestroy");
}

void Cuda::set(const Tensor& tensor, unsigned char value, StreamHandle stream) {
  const Current current(*driver_, 0);
  check(driver_->set(address(tensor.storage().data()), value, tensor.storage().nbytes(),
                     handle(stream)),
        "cuMemsetD8Async");
}

void Cuda::synchronize(StreamHandle stream) {
  const Current current(*driver_, 0);
  check(driver_->synchronize(handle(stream)), "cuStreamSynchronize");
}

void Cuda::begin_capture(StreamHandle stream) {
  check(driver_->begin_capture(handle(stream), CU_STREAM_CAPTURE_MODE_GLOBAL),
        "cuStreamBeginCapture");
}

bool Cuda::end_capture(StreamHandle stream) {
  CUgraph graph = nullptr;
  return driver_->end_capture(handle(stream), &graph) == CUDA_SUCCESS;
}

}  // namespace meshstage::test
