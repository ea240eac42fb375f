#pragma once
#include <cstdint>

#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage {

/// The structs of DLPack's binary interface, version 1, as https://dmlc.github.io/dlpack specifies
/// them. By DLPack array libraries hand tensors to one another without copying. The layout is that
/// of dlpack.h, so pointers may be cast from one to the other.
namespace dlpack {

inline constexpr std::uint32_t kMajorVersion = 1;
inline constexpr std::uint32_t kMinorVersion = 1;

/// The layout changes with `major`: of a capsule with another major version only the deleter may be
/// called.
struct Version {
  std::uint32_t major = kMajorVersion;
  std::uint32_t minor = kMinorVersion;
};

/// Values of Device::type; DLPack has more, which meshstage does not use.
enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
struct Device {
  std::int32_t type = kCpu;
  std::int32_t id = 0;
};

/// Values of DataType::code.
enum TypeCode : std::uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kBfloat = 4,
  kComplex = 5,
  kBool = 6,
  kFloat8E4M3FN = 10,
  kFloat8E5M2 = 12,
};
struct DataType {
  std::uint8_t code = kFloat;
  std::uint8_t bits = 32;
  std::uint16_t lanes = 1;
};

struct TensorView {
  void* data = nullptr;  ///< byte_offset before the first element; null if there is none.
  Device device;
  std::int32_t ndim = 0;
  DataType dtype;
  std::int64_t* shape = nullptr;
  std::int64_t* strides = nullptr;  ///< In elements; null for row-major.
  std::uint64_t byte_offset = 0;
};

/// The capsule "dltensor". The deleter frees the memory and the struct itself; it may be null.
struct ManagedTensor {
  TensorView tensor;
  void* context = nullptr;
  void (*deleter)(ManagedTensor* self) = nullptr;
};

inline constexpr std::uint64_t kReadOnly = 1;  ///< Of ManagedTensorVersioned::flags.

/// The capsule "dltensor_versioned".
struct ManagedTensorVersioned {
  Version version;
  void* context = nullptr;
  void (*deleter)(ManagedTensorVersioned* self) = nullptr;
  std::uint64_t flags = 0;
  TensorView tensor;
};

}  // namespace dlpack

/// Takes over a capsule: the tensor is a view of the capsule's memory. The capsule's deleter runs
/// exactly once: when the last handle to that memory is gone, or before this function throws. The
/// storage is external: where two external storages overlap, they count as one memory. Memory that
/// a capsule calls read-only cannot be written through Tensor::data.
/// Throws InvalidArgument for a version with another layout, and for a device that is neither the
/// CPU (pinned or not) nor CUDA. Throws it also for an element type that DType lacks, elements that
/// are not aligned to their size, and negative strides. The memory of a capsule on a CUDA device is
/// not read.
[[nodiscard]] MESHSTAGE_API Tensor from_dlpack(dlpack::ManagedTensorVersioned* capsule);
[[nodiscard]] MESHSTAGE_API Tensor from_dlpack(dlpack::ManagedTensor* capsule);

/// Makes a capsule of the tensor for another library. That library calls the capsule's deleter; the
/// memory lives until then. The capsule says so if the memory is read-only.
[[nodiscard]] MESHSTAGE_API dlpack::ManagedTensorVersioned* to_dlpack(const Tensor& tensor);

}  // namespace meshstage
