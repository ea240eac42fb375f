#pragma once
#include <optional>
#include <string>
#include <string_view>

#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// The first difference between two trees, in the order of the first tree.
struct Difference {
  enum class What : std::uint8_t {
    kKind,    ///< int against string, tuple against list, one Node type against another.
    kKeys,    ///< A key that only one side has, or another order.
    kLength,  ///< Of a list or tuple.
    kValue,   ///< Of a scalar, or the bits of a tensor's elements.
    kDType,
    kShape,
    kStride,
    kOffset,
    kDevice,
    kStorage,    ///< Bytes of the storage below a tensor.
    kAttribute,  ///< Only one side has attributes.
    kAuxiliary,  ///< Plain data of a Node.
    kSharing,    ///< Two places share a storage, tensor or container on one side only.
  };
  What what{};
  std::string path;  ///< In the form of Path::text(); empty for the root.
  std::string left,
      right;  ///< The two sides there: "F32[2, 3]", "missing", "shares storage with
              ///< model.wte".
  /// "model.w: shape: F32[2, 3] against F32[3, 2]".
  [[nodiscard]] MESHSTAGE_API std::string describe() const;
  /// The same text with names for the sides: "model.w: shape: F32[2, 3] in the image, F32[3, 2] in
  /// the program's state dict".
  [[nodiscard]] MESHSTAGE_API std::string describe(std::string_view left_name,
                                                   std::string_view right_name) const;
};
MESHSTAGE_API std::string_view to_string(Difference::What what) noexcept;

/// compare() looks at these besides kinds, keys, lengths, dtypes and shapes.
struct CompareOptions {
  bool values = true;  ///< Scalars (and their kinds) and elements, bit for bit: NaN equals itself,
                       ///< 0.0 not -0.0.
  bool layout = true;  ///< Strides and storage offsets.
  bool storage_bytes = false;  ///< Sizes of whole storages.
  bool device = true;
  bool attributes = true;
  bool sharing = true;  ///< Whether the same places share storages, tensor objects and containers.
  bool key_order = true;
};

/// The first difference, or nothing. If values are compared, tensors must be on the CPU. Throws
/// InvalidArgument on a cycle, naming its path.
MESHSTAGE_API std::optional<Difference> compare(const Value& a, const Value& b,
                                                const CompareOptions& options = {});

}  // namespace meshstage
