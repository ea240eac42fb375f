#include <meshstage/core/tensor/dlpack.hpp>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

namespace meshstage {
namespace {

// The layout that every other library has.
static_assert(sizeof(dlpack::TensorView) == 48 && offsetof(dlpack::TensorView, byte_offset) == 40);
static_assert(offsetof(dlpack::TensorView, shape) == 24);
static_assert(sizeof(dlpack::ManagedTensor) == 64 &&
              offsetof(dlpack::ManagedTensor, deleter) == 56);
static_assert(sizeof(dlpack::ManagedTensorVersioned) == 80 &&
              offsetof(dlpack::ManagedTensorVersioned, deleter) == 16 &&
              offsetof(dlpack::ManagedTensorVersioned, tensor) == 32);

[[noreturn]] void refuse(const std::string& what) {
  throw InvalidArgument("a DLPack capsule " + what);
}

struct KnownType {
  DType dtype;
  std::uint8_t code, bits;
};
constexpr KnownType kKnownTypes[] = {
    {DType::kBool, dlpack::kBool, 8},
    {DType::kU8, dlpack::kUInt, 8},
    {DType::kI8, dlpack::kInt, 8},
    {DType::kU16, dlpack::kUInt, 16},
    {DType::kI16, dlpack::kInt, 16},
    {DType::kU32, dlpack::kUInt, 32},
    {DType::kI32, dlpack::kInt, 32},
    {DType::kU64, dlpack::kUInt, 64},
    {DType::kI64, dlpack::kInt, 64},
    {DType::kF8E4M3, dlpack::kFloat8E4M3FN, 8},
    {DType::kF8E5M2, dlpack::kFloat8E5M2, 8},
    {DType::kF16, dlpack::kFloat, 16},
    {DType::kBF16, dlpack::kBfloat, 16},
    {DType::kF32, dlpack::kFloat, 32},
    {DType::kF64, dlpack::kFloat, 64},
    {DType::kC64, dlpack::kComplex, 64},
    {DType::kC128, dlpack::kComplex, 128},
};
static_assert(std::size(kKnownTypes) == kDTypeCount);

DType dtype_from(dlpack::DataType type) {
  for (const auto& known : kKnownTypes) {
    if (known.code == type.code && known.bits == type.bits && type.lanes == 1) return known.dtype;
  }
  refuse("has elements of type code " + std::to_string(type.code) + ", " +
         std::to_string(type.bits) + " bits, " + std::to_string(type.lanes) +
         " lanes, for which there is no DType");
}

dlpack::DataType dtype_to(DType dtype) {
  for (const auto& known : kKnownTypes) {
    if (known.dtype == dtype) return {known.code, known.bits, 1};
  }
  throw InvalidState("a dtype that DLPack lacks");
}

Device device_from(dlpack::Device device) {
  switch (device.type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:
      return kCpu;
    case dlpack::kCuda:
      if (device.id >= 0 && device.id <= INT16_MAX)
        return {DeviceType::kCuda, static_cast<std::int16_t>(device.id)};
      [[fallthrough]];
    default:
      refuse("is on device type " + std::to_string(device.type) + ", id " +
             std::to_string(device.id) + "; copy it to the CPU first");
  }
}

// `owner` runs the deleter.
Tensor view_of(const dlpack::TensorView& t, bool read_only, std::shared_ptr<const void> owner) {
  const auto device = device_from(t.device);
  const auto dtype = dtype_from(t.dtype);
  if (t.ndim < 0 || (t.ndim > 0 && t.shape == nullptr)) refuse("has no shape");
  const auto dims = static_cast<std::size_t>(t.ndim);
  const Shape shape(t.shape, t.shape + dims);
  const Strides strides =
      t.strides == nullptr ? contiguous_strides(shape) : Strides(t.strides, t.strides + dims);
  // Up to behind the last element that the view touches.
  std::uint64_t elements = element_count(shape) == 0 ? 0 : 1;
  for (std::size_t d = 0; d < dims && elements != 0; ++d) {
    std::uint64_t reach = 0;
    if (strides[d] < 0) refuse("has negative strides " + to_string(strides));
    if (__builtin_mul_overflow(static_cast<std::uint64_t>(shape[d] - 1),
                               static_cast<std::uint64_t>(strides[d]), &reach) ||
        __builtin_add_overflow(elements, reach, &elements))
      refuse("of shape " + to_string(shape) + " reaches beyond the address space");
  }
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(elements, size_of(dtype), &bytes))
    refuse("of shape " + to_string(shape) + " reaches beyond the address space");
  auto* const begin = static_cast<std::byte*>(t.data) + (t.data == nullptr ? 0 : t.byte_offset);
  // A complex number is aligned as its parts are.
  const bool complex = dtype == DType::kC64 || dtype == DType::kC128;
  const auto alignment = size_of(dtype) / (complex ? 2 : 1);
  if (reinterpret_cast<std::uintptr_t>(begin) % alignment != 0) {
    refuse("has elements " + std::string(to_string(dtype)) +
           " at an address that is no multiple of " + std::to_string(alignment) +
           "; copy them to an aligned one");
  }
  StorageTraits traits;
  traits.external = true;
  traits.read_only = read_only;
  traits.pinned = t.device.type == dlpack::kCudaHost;
  auto storage = Storage::wrap(bytes == 0 ? nullptr : begin, bytes, std::move(owner),
                               std::move(traits), device);
  // What has no element keeps its shape; strides then say nothing.
  return Tensor::on_storage(std::move(storage), dtype, shape,
                            elements == 0 ? contiguous_strides(shape) : strides);
}

template <class Capsule>
std::shared_ptr<const void> owner_of(Capsule* capsule) {
  return {capsule, [](Capsule* c) {
            if (c->deleter != nullptr) c->deleter(c);
          }};
}

// What a capsule of ours points to.
struct Exported {
  dlpack::ManagedTensorVersioned capsule;
  Tensor tensor;
  Shape shape;
  Strides strides;
};

}  // namespace

Tensor from_dlpack(dlpack::ManagedTensorVersioned* capsule) {
  if (capsule == nullptr) refuse("is a null pointer");
  auto owner = owner_of(capsule);
  if (capsule->version.major != dlpack::kMajorVersion) {
    refuse("of version " + std::to_string(capsule->version.major) + "." +
           std::to_string(capsule->version.minor) + " has a layout other than version " +
           std::to_string(dlpack::kMajorVersion) + "'s");
  }
  return view_of(capsule->tensor, (capsule->flags & dlpack::kReadOnly) != 0, std::move(owner));
}

Tensor from_dlpack(dlpack::ManagedTensor* capsule) {
  if (capsule == nullptr) refuse("is a null pointer");
  auto owner = owner_of(capsule);
  return view_of(capsule->tensor, false, std::move(owner));
}

dlpack::ManagedTensorVersioned* to_dlpack(const Tensor& tensor) {
  if (!tensor.defined()) throw InvalidArgument("to_dlpack() of an undefined tensor");
  auto exported =
      std::make_unique<Exported>(Exported{{}, tensor, tensor.shape(), tensor.strides()});
  auto& capsule = exported->capsule;
  auto& view = capsule.tensor;
  view.data = tensor.numel() == 0 ? nullptr : tensor.first_byte();
  view.device = {tensor.device().is_cpu() ? dlpack::kCpu : dlpack::kCuda, tensor.device().index};
  view.ndim = static_cast<std::int32_t>(tensor.dim());
  view.dtype = dtype_to(tensor.dtype());
  view.shape = exported->shape.data();
  view.strides = exported->strides.data();
  if (tensor.storage().traits().read_only) capsule.flags = dlpack::kReadOnly;
  capsule.context = exported.get();
  capsule.deleter = [](dlpack::ManagedTensorVersioned* self) {
    delete static_cast<Exported*>(self->context);
  };
  return &exported.release()->capsule;
}

}  // namespace meshstage
