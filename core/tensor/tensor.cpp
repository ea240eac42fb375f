#include <algorithm>
#include <cstring>

#include <meshstage/core/tensor/strided.hpp>
#include <meshstage/core/tensor/tensor.hpp>

namespace meshstage {
namespace {

constexpr const char* kTooLarge = " has more elements than 63 bits count";

bool is_row_major(const Shape& shape, const Strides& strides, std::int64_t numel) {
  if (numel == 0) return true;
  std::int64_t expected = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    if (shape[d] != 1 && strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}

// Elements from the first to behind the last that the view touches, with its offset; checked.
std::int64_t extent(const Shape& shape, const Strides& strides, std::int64_t offset,
                    std::int64_t numel) {
  if (numel == 0) return 0;
  std::int64_t last = offset;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    std::int64_t reach = 0;
    if (__builtin_mul_overflow(shape[d] - 1, strides[d], &reach) ||
        __builtin_add_overflow(last, reach, &last)) {
      throw InvalidArgument("strides of a tensor of shape " + to_string(shape) +
                            " reach beyond 63 bits");
    }
  }
  if (__builtin_add_overflow(last, 1, &last)) {
    throw InvalidArgument("a tensor of shape " + to_string(shape) + " reaches beyond 63 bits");
  }
  return last;
}

void check_in_storage(const Storage& storage, DType dtype, std::int64_t elements,
                      const Shape& shape, const Strides& strides, std::int64_t offset) {
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(elements, static_cast<std::int64_t>(size_of(dtype)), &bytes) ||
      static_cast<std::uint64_t>(bytes) > storage.nbytes()) {
    throw InvalidArgument("a view " + std::string(to_string(dtype)) + to_string(shape) +
                          " with strides " + to_string(strides) + " at element " +
                          std::to_string(offset) + " ends at element " + std::to_string(elements) +
                          ", beyond its storage of " + std::to_string(storage.nbytes()) + " bytes");
  }
}

}  // namespace

std::int64_t element_count(const Shape& shape) {
  std::int64_t count = 1;
  bool empty = false;
  bool overflow = false;
  for (const auto d : shape) {
    if (d < 0) throw InvalidArgument("shape " + to_string(shape) + " has a negative dim");
    // Dims beside a 0 may be as large as they like only if their product still counts: strides need
    // it.
    if (d == 0)
      empty = true;
    else
      overflow |= __builtin_mul_overflow(count, d, &count);
  }
  if (overflow) throw InvalidArgument("shape " + to_string(shape) + kTooLarge);
  return empty ? 0 : count;
}

Strides contiguous_strides(const Shape& shape) {
  static_cast<void>(element_count(shape));
  Strides strides(shape.size());
  std::int64_t step = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    strides[d] = step;
    step *= std::max<std::int64_t>(shape[d], 1);
  }
  return strides;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(shape[d]);
  }
  return text + "]";
}

Tensor Tensor::empty(const Shape& shape, DType dtype) {
  const auto count = static_cast<std::uint64_t>(element_count(shape));
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(count, static_cast<std::uint64_t>(size_of(dtype)), &bytes)) {
    throw InvalidArgument("shape " + to_string(shape) + kTooLarge);
  }
  return on_storage(Storage::allocate(bytes), dtype, shape);
}

Tensor Tensor::zeros(const Shape& shape, DType dtype) {
  Tensor t = empty(shape, dtype);
  if (t.nbytes() != 0) std::memset(t.first_byte(), 0, t.nbytes());
  return t;
}

Tensor Tensor::from_blob(void* data, const Shape& shape, DType dtype,
                         std::function<void(void*)> deleter) {
  // First the storage, so that the deleter runs whatever is wrong with the shape.
  std::shared_ptr<const void> owner(data, [deleter = std::move(deleter)](const void* p) {
    if (deleter) deleter(const_cast<void*>(p));
  });
  const auto count = static_cast<std::uint64_t>(element_count(shape));
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(count, static_cast<std::uint64_t>(size_of(dtype)), &bytes)) {
    throw InvalidArgument("shape " + to_string(shape) + kTooLarge);
  }
  return on_storage(Storage::wrap(data, bytes, std::move(owner), {.external = true}), dtype, shape);
}

Tensor Tensor::on_storage(Storage storage, DType dtype, Shape shape, Strides strides,
                          std::int64_t offset) {
  if (!storage.valid()) throw InvalidArgument("a tensor needs a storage");
  if (shape.size() != strides.size()) {
    throw InvalidArgument("shape " + to_string(shape) + " and strides " + to_string(strides) +
                          " differ in length");
  }
  if (offset < 0 || std::any_of(strides.begin(), strides.end(), [](auto s) { return s < 0; })) {
    throw InvalidArgument("strides " + to_string(strides) + " and offset " +
                          std::to_string(offset) + " must not be negative");
  }
  auto impl = std::make_shared<Impl>();
  impl->numel = element_count(shape);
  check_in_storage(storage, dtype, extent(shape, strides, offset, impl->numel), shape, strides,
                   offset);
  impl->contiguous = is_row_major(shape, strides, impl->numel);
  impl->storage = std::move(storage);
  impl->dtype = dtype;
  impl->shape = std::move(shape);
  impl->strides = std::move(strides);
  impl->offset = offset;
  return Tensor(std::shared_ptr<const Impl>(std::move(impl)));
}

Tensor Tensor::on_storage(Storage storage, DType dtype, Shape shape) {
  auto strides = contiguous_strides(shape);
  return on_storage(std::move(storage), dtype, std::move(shape), std::move(strides), 0);
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor t = empty(shape(), dtype());
  t.copy_from(*this);
  return t;
}

void Tensor::copy_from(const Tensor& source) const {
  if (source.dtype() != dtype() || source.shape() != shape()) {
    throw InvalidArgument("copy_from: " + source.describe() + " into " + describe());
  }
  source.check_access(dtype(), true);
  check_access(dtype(), false);
  if (numel() == 0) return;
  if (is_contiguous() && source.is_contiguous()) {
    std::memmove(first_byte(), source.first_byte(), nbytes());
    return;
  }
  const std::size_t width = size_of(dtype());
  detail::for_each_run_pair(shape(), strides(), source.strides(),
                            [&](std::int64_t to, std::int64_t from, std::int64_t run) {
                              std::memmove(
                                  first_byte() + static_cast<std::size_t>(to) * width,
                                  source.first_byte() + static_cast<std::size_t>(from) * width,
                                  static_cast<std::size_t>(run) * width);
                              return true;
                            });
}

bool same_bits(const Tensor& a, const Tensor& b) {
  if (a.dtype() != b.dtype() || a.shape() != b.shape()) return false;
  if (!a.device().is_cpu() || !b.device().is_cpu())
    throw InvalidState("same_bits() compares CPU tensors only");
  if (a.numel() == 0) return true;
  if (a.is_contiguous() && b.is_contiguous())
    return std::memcmp(a.first_byte(), b.first_byte(), a.nbytes()) == 0;
  const std::size_t width = size_of(a.dtype());
  return detail::for_each_run_pair(
      a.shape(), a.strides(), b.strides(), [&](std::int64_t i, std::int64_t j, std::int64_t run) {
        return std::memcmp(a.first_byte() + static_cast<std::size_t>(i) * width,
                           b.first_byte() + static_cast<std::size_t>(j) * width,
                           static_cast<std::size_t>(run) * width) == 0;
      });
}

std::string Tensor::describe() const {
  if (!defined()) return "undefined tensor";
  std::string text = std::string(to_string(dtype())) + to_string(shape());
  if (!is_contiguous()) text += " strides " + to_string(strides());
  if (storage_offset() != 0) text += " offset " + std::to_string(storage_offset());
  return text;
}

void Tensor::check_access(DType wanted, bool read_only_suffices) const {
  if (!defined()) throw InvalidArgument("data() of an undefined tensor");
  if (wanted != dtype()) {
    throw InvalidArgument("data() as " + std::string(to_string(wanted)) + " of a tensor of " +
                          std::string(to_string(dtype())));
  }
  if (!device().is_cpu()) {
    throw InvalidState("data() of a tensor on " + to_string(device()) +
                       "; copy it to the CPU first");
  }
  if (!read_only_suffices && storage().traits().read_only) {
    throw InvalidState(
        "writing data() of a tensor in read-only memory; take data<const T>() or a clone()");
  }
}

void Tensor::check_contiguous(const char* call) const {
  if (!is_contiguous()) {
    throw InvalidArgument(std::string(call) + " of " + describe() +
                          ": it is not contiguous; take contiguous() first");
  }
}

void Tensor::check_count(const Shape& shape, std::size_t count) {
  if (static_cast<std::size_t>(element_count(shape)) != count) {
    throw InvalidArgument("shape " + to_string(shape) + " does not have " + std::to_string(count) +
                          " elements");
  }
}

}  // namespace meshstage
