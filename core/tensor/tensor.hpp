#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/dtype.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage {

/// Elements along each dimension; empty for a tensor of one element without dimensions.
using Shape = std::vector<std::int64_t>;
/// For each dimension the number of elements from one index to the next; never negative. 0 repeats
/// one element.
using Strides = std::vector<std::int64_t>;

/// The product of the dims. Throws InvalidArgument on a negative dim or one that wraps 63 bits.
MESHSTAGE_API std::int64_t element_count(const Shape& shape);
/// The strides of a row-major tensor of this shape. Throws what element_count() throws.
MESHSTAGE_API Strides contiguous_strides(const Shape& shape);
/// "[2, 3]".
MESHSTAGE_API std::string to_string(const Shape& shape);

/// A view of a storage: dtype, shape, strides and offset, all in elements. It is a handle to
/// mutable memory: copies are the same tensor object (identity()), views are new objects on the
/// same storage. Dtype, shape, strides and offset never change; the bytes of the storage may.
/// Each constructor checks that every element lies within the storage and throws InvalidArgument.
/// Threads: see Storage.
class MESHSTAGE_API Tensor {
 public:
  /// Undefined: only defined() and comparison of identity may be called.
  Tensor() = default;

  // Makers; CPU memory.
  /// Contents unspecified.
  [[nodiscard]] static Tensor empty(const Shape& shape, DType dtype);
  [[nodiscard]] static Tensor zeros(const Shape& shape, DType dtype);
  template <class T>
  [[nodiscard]] static Tensor full(const Shape& shape, T value) {
    Tensor t = empty(shape, dtype_of<T>);
    T* p = t.data<T>();
    for (std::int64_t i = 0, n = t.numel(); i < n; ++i) p[i] = value;
    return t;
  }
  /// Copies `values`; `shape` must have as many elements.
  template <class T>
  [[nodiscard]] static Tensor from_vector(const std::vector<T>& values, const Shape& shape) {
    Tensor t = empty(shape, dtype_of<T>);
    check_count(shape, values.size());
    for (std::size_t i = 0; i < values.size(); ++i) t.data<T>()[i] = values[i];
    return t;
  }
  template <class T>
  [[nodiscard]] static Tensor from_vector(const std::vector<T>& values) {
    return from_vector(values, {static_cast<std::int64_t>(values.size())});
  }
  /// 0, 1, ..., count - 1.
  template <class T>
  [[nodiscard]] static Tensor arange(std::int64_t count) {
    Tensor t = empty({count}, dtype_of<T>);
    for (std::int64_t i = 0; i < count; ++i) t.data<T>()[i] = static_cast<T>(i);
    return t;
  }
  /// Without dimensions.
  template <class T>
  [[nodiscard]] static Tensor scalar(T value) {
    return full<T>({}, value);
  }
  /// A row-major tensor over memory of another library; `deleter(data)` runs exactly once, also if
  /// this function throws.
  [[nodiscard]] static Tensor from_blob(void* data, const Shape& shape, DType dtype,
                                        std::function<void(void*)> deleter);
  /// Any view of a storage.
  [[nodiscard]] static Tensor on_storage(Storage storage, DType dtype, Shape shape, Strides strides,
                                         std::int64_t offset = 0);
  /// The whole or the beginning of a storage, row-major.
  [[nodiscard]] static Tensor on_storage(Storage storage, DType dtype, Shape shape);

  [[nodiscard]] bool defined() const noexcept { return impl_ != nullptr; }
  [[nodiscard]] const Storage& storage() const noexcept { return impl_->storage; }
  [[nodiscard]] DType dtype() const noexcept { return impl_->dtype; }
  [[nodiscard]] const Shape& shape() const noexcept { return impl_->shape; }
  [[nodiscard]] const Strides& strides() const noexcept { return impl_->strides; }
  /// Elements from the storage's begin to the first element.
  [[nodiscard]] std::int64_t storage_offset() const noexcept { return impl_->offset; }
  [[nodiscard]] std::size_t dim() const noexcept { return impl_->shape.size(); }
  [[nodiscard]] std::int64_t size(std::size_t d) const { return impl_->shape.at(d); }
  [[nodiscard]] std::int64_t numel() const noexcept { return impl_->numel; }
  /// Bytes of the elements, not of the storage: numel() * size_of(dtype()).
  [[nodiscard]] std::size_t nbytes() const noexcept {
    return static_cast<std::size_t>(impl_->numel) * size_of(impl_->dtype);
  }
  [[nodiscard]] Device device() const noexcept { return impl_->storage.device(); }
  [[nodiscard]] bool is_pinned() const noexcept { return impl_->storage.is_pinned(); }
  [[nodiscard]] bool is_shared() const noexcept { return impl_->storage.is_shared(); }
  /// True if row-major without holes. A tensor without elements is contiguous.
  [[nodiscard]] bool is_contiguous() const noexcept { return impl_->contiguous; }
  /// True if contiguous and as long as its storage.
  [[nodiscard]] bool covers_storage() const noexcept {
    return is_contiguous() && storage_offset() == 0 && nbytes() == storage().nbytes();
  }

  /// Points to the first element; the others lie by the strides. Throws InvalidArgument if T is not
  /// the dtype, InvalidState if the memory is not on the CPU, or if it is read-only and T is not
  /// const.
  template <class T>
  [[nodiscard]] T* data() const {
    check_access(dtype_of<std::remove_const_t<T>>, std::is_const_v<T>);
    return reinterpret_cast<T*>(first_byte());
  }
  /// The elements in order. Throws InvalidArgument unless contiguous, and what data() throws.
  template <class T>
  [[nodiscard]] std::span<T> span() const {
    check_contiguous("span");
    return {data<T>(), static_cast<std::size_t>(numel())};
  }
  /// A copy of the elements, row-major, whatever the strides.
  template <class T>
  [[nodiscard]] std::vector<T> to_vector() const {
    const Tensor t = contiguous();
    const T* p = t.data<const T>();
    return std::vector<T>(p, p + t.numel());
  }
  /// The only element. Throws InvalidArgument if the tensor has another number of elements.
  template <class T>
  [[nodiscard]] T item() const {
    check_count(shape(), 1);
    return *data<const T>();
  }
  /// Address of the first element, on the tensor's device; the storage's begin if there is no
  /// element.
  [[nodiscard]] std::byte* first_byte() const noexcept {
    return storage().data() +
           (numel() == 0 ? 0 : static_cast<std::size_t>(storage_offset()) * size_of(dtype()));
  }

  // Views: new tensors on the same storage. A dim may be negative, counting from the end.
  /// A row-major tensor of another shape; one dim may be -1. Throws InvalidArgument unless
  /// contiguous.
  [[nodiscard]] Tensor view(Shape shape) const;
  /// view() if contiguous, else view() of a copy.
  [[nodiscard]] Tensor reshape(Shape shape) const;
  /// `length` indices from `start` along `dim`.
  [[nodiscard]] Tensor narrow(std::int64_t dim, std::int64_t start, std::int64_t length) const;
  /// One index along `dim`; the result lacks that dim.
  [[nodiscard]] Tensor select(std::int64_t dim, std::int64_t index) const;
  /// Every `step`-th of [start, stop) along `dim`.
  [[nodiscard]] Tensor slice(std::int64_t dim, std::int64_t start, std::int64_t stop,
                             std::int64_t step = 1) const;
  [[nodiscard]] Tensor transpose(std::int64_t dim0, std::int64_t dim1) const;
  /// Repeats dims of size 1 (stride 0); `shape` may have further dims in front.
  [[nodiscard]] Tensor expand(const Shape& shape) const;
  [[nodiscard]] Tensor as_strided(Shape shape, Strides strides, std::int64_t offset) const;
  /// Itself if contiguous, else a row-major copy. CPU only.
  [[nodiscard]] Tensor contiguous() const;
  /// A row-major copy in memory of its own. CPU only.
  [[nodiscard]] Tensor clone() const;
  /// Copies the elements of `source` (same dtype and shape, any strides) into these. CPU only.
  void copy_from(const Tensor& source) const;

  /// Equal for handles of one tensor object. For hashing; do not dereference it.
  [[nodiscard]] const void* identity() const noexcept { return impl_.get(); }
  /// A token that keeps the identity from being reused, but does not keep the memory.
  [[nodiscard]] std::weak_ptr<const void> weak() const noexcept { return impl_; }
  /// "F32[2, 3]", with strides and offset unless the tensor is contiguous at offset 0.
  [[nodiscard]] std::string describe() const;

 private:
  struct Impl {
    Storage storage;
    DType dtype = DType::kU8;
    Shape shape;
    Strides strides;
    std::int64_t offset = 0;
    std::int64_t numel = 0;
    bool contiguous = true;
  };
  explicit Tensor(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  void check_access(DType wanted, bool read_only_suffices) const;
  void check_contiguous(const char* call) const;
  static void check_count(const Shape& shape, std::size_t count);
  [[nodiscard]] std::size_t check_dim(std::int64_t dim, const char* call) const;
  std::shared_ptr<const Impl> impl_;
};

/// True if dtype, shape and the bits of all elements are equal, whatever the strides. CPU only.
MESHSTAGE_API bool same_bits(const Tensor& a, const Tensor& b);

}  // namespace meshstage
