#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_map>

#include <meshstage/core/tree/compare.hpp>
#include <meshstage/core/tree/tree_storages.hpp>
#include <meshstage/core/tree/walk.hpp>

namespace meshstage {
namespace {

using What = Difference::What;

// Which object on the other side an object on this side stands for, and where it was seen first.
class Pairing {
 public:
  // Nothing, or where `a` or `b` was first seen together with another object.
  struct Clash {
    std::string left, right;  // "" where that side is new
  };
  std::optional<Clash> pair(const void* a, const void* b, const Path& path) {
    const auto left = left_.find(a);
    const auto right = right_.find(b);
    const bool new_left = left == left_.end();
    const bool new_right = right == right_.end();
    if (new_left && new_right) {
      left_.emplace(a, std::pair{b, path.text()});
      right_.emplace(b, path.text());
      return std::nullopt;
    }
    if (!new_left && left->second.first == b) return std::nullopt;
    return Clash{new_left ? "" : left->second.second, new_right ? "" : right->second};
  }
  [[nodiscard]] bool seen(const void* a, const void* b) const {
    const auto left = left_.find(a);
    return left != left_.end() && left->second.first == b;
  }

 private:
  std::unordered_map<const void*, std::pair<const void*, std::string>> left_;
  std::unordered_map<const void*, std::string> right_;
};

class Comparer {
 public:
  Comparer(const Value& a, const Value& b, const CompareOptions& options)
      : options_(options), left_(a), right_(b) {}
  std::optional<Difference> run(const Value& a, const Value& b) {
    compare(a, b);
    return std::move(found_);
  }

 private:
  void differ(What what, std::string left, std::string right) {
    if (!found_) found_ = Difference{what, walk_.path().text(), std::move(left), std::move(right)};
  }

  void compare(const Value& a, const Value& b) {
    if (found_) return;
    if (a.is_scalar() && b.is_scalar()) {
      if (options_.values) compare_scalars(a, b);
      return;
    }
    if (a.kind() != b.kind()) return differ(What::kKind, a.describe(), b.describe());
    if (const auto* tensor = a.get_if<Tensor>()) {
      compare_tensors(*tensor, b.as<Tensor>());
      compare_attributes(a.attributes(), b.attributes());
      return;
    }
    compare_containers(a, b);
  }

  void compare_scalars(const Value& a, const Value& b) {
    if (a.kind() != b.kind()) return differ(What::kKind, a.describe(), b.describe());
    bool same = true;
    switch (a.kind()) {
      case ValueKind::kBool:
        same = a.as<bool>() == b.as<bool>();
        break;
      case ValueKind::kInt:
        same = a.as<std::int64_t>() == b.as<std::int64_t>();
        break;
      case ValueKind::kDouble:
        same = std::bit_cast<std::uint64_t>(a.as<double>()) ==
               std::bit_cast<std::uint64_t>(b.as<double>());
        break;
      case ValueKind::kString:
        same = a.as<std::string>() == b.as<std::string>();
        break;
      case ValueKind::kBytes:
        same = a.as<Bytes>() == b.as<Bytes>();
        break;
      default:
        break;
    }
    if (!same) differ(What::kValue, a.describe(), b.describe());
  }

  void compare_containers(const Value& a, const Value& b) {
    const void* left = detail::container_identity(a);
    const void* right = detail::container_identity(b);
    const bool again = containers_.seen(left, right);
    // An object that is still open is a cycle: open() says so.
    if (again && std::find(open_.begin(), open_.end(), left) == open_.end()) return;
    if (options_.sharing && !again) {
      if (const auto clash = containers_.pair(left, right, walk_.path()))
        return differ_sharing(*clash, "is");
    }
    open_.push_back(left);
    walk_.open(left, [&] {
      if (const auto* dict = a.get_if<Dict>()) {
        compare_dicts(*dict, b.as<Dict>());
      } else if (const auto* list = a.get_if<List>()) {
        compare_sequences(*list, b.as<List>());
      } else if (const auto* tuple = a.get_if<Tuple>()) {
        compare_sequences(*tuple, b.as<Tuple>());
      } else {
        compare_nodes(*a.as<NodePtr>(), *b.as<NodePtr>());
      }
    });
    open_.pop_back();
  }

  void compare_dicts(const Dict& a, const Dict& b) {
    for (const auto& [key, value] : a) {
      const Value* other = b.find(key);
      walk_.below(key, [&] {
        if (other == nullptr) {
          differ(What::kKeys, value.describe(), "missing");
        } else {
          compare(value, *other);
        }
      });
      if (found_) return;
    }
    for (const auto& [key, value] : b) {
      if (a.contains(key)) continue;
      walk_.below(key, [&] { differ(What::kKeys, "missing", value.describe()); });
      return;
    }
    if (!options_.key_order) return;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const Key& left = a.begin()[i].first;
      const Key& right = b.begin()[i].first;
      if (left == right) continue;
      const auto at = "key " + std::to_string(i) + " is ";
      return differ(What::kKeys, at + Path::escape(left), at + Path::escape(right));
    }
  }

  void compare_sequences(const Sequence& a, const Sequence& b) {
    if (a.size() != b.size()) {
      return differ(What::kLength, std::to_string(a.size()) + " elements",
                    std::to_string(b.size()) + " elements");
    }
    for (std::size_t i = 0; i < a.size() && !found_; ++i) {
      walk_.below(Key(i), [&] { compare(a[i], b[i]); });
    }
  }

  void compare_nodes(const Node& a, const Node& b) {
    if (a.type_name() != b.type_name()) {
      return differ(What::kKind, "node " + a.type_name(), "node " + b.type_name());
    }
    if (const auto inner = meshstage::compare(a.auxiliary(), b.auxiliary(), CompareOptions{})) {
      return differ(What::kAuxiliary, inner->path + " " + inner->left,
                    inner->path + " " + inner->right);
    }
    const auto left = a.children();
    const auto right = b.children();
    if (left.size() != right.size()) {
      return differ(What::kLength, std::to_string(left.size()) + " children",
                    std::to_string(right.size()) + " children");
    }
    for (std::size_t i = 0; i < left.size() && !found_; ++i) {
      if (left[i].name != right[i].name) {
        return differ(What::kKeys, "child " + left[i].name, "child " + right[i].name);
      }
      walk_.below(Key(left[i].name), [&] { compare(left[i].value, right[i].value); });
    }
  }

  void compare_tensors(const Tensor& a, const Tensor& b) {
    const auto differs = [&](What what) { differ(what, a.describe(), b.describe()); };
    if (a.dtype() != b.dtype()) return differs(What::kDType);
    if (a.shape() != b.shape()) return differs(What::kShape);
    if (options_.layout && a.strides() != b.strides()) {
      return differ(What::kStride, to_string(a.strides()), to_string(b.strides()));
    }
    if (options_.layout && left_.offset(a) != right_.offset(b)) {
      const auto elements = [&](std::uint64_t bytes) {
        return "offset " + std::to_string(bytes / size_of(a.dtype()));
      };
      return differ(What::kOffset, elements(left_.offset(a)), elements(right_.offset(b)));
    }
    const auto& left = left_.memory(a);
    const auto& right = right_.memory(b);
    if (options_.storage_bytes && left.nbytes() != right.nbytes()) {
      return differ(What::kStorage, "a storage of " + std::to_string(left.nbytes()) + " bytes",
                    "a storage of " + std::to_string(right.nbytes()) + " bytes");
    }
    if (options_.device && !(a.device() == b.device())) {
      return differ(What::kDevice, to_string(a.device()), to_string(b.device()));
    }
    if (options_.sharing) {
      if (const auto clash = storages_.pair(left.identity(), right.identity(), walk_.path())) {
        return differ_sharing(*clash, "shares storage with");
      }
      if (const auto clash = tensors_.pair(a.identity(), b.identity(), walk_.path())) {
        return differ_sharing(*clash, "is the tensor object of");
      }
    }
    // One view of one storage is equal to itself on any device; other memory is read by the CPU.
    const bool one_view = a.storage() == b.storage() && a.strides() == b.strides() &&
                          a.storage_offset() == b.storage_offset();
    if (options_.values && a.numel() > 0 && !one_view && !same_bits(a, b)) differ_elements(a, b);
  }

  void differ_elements(const Tensor& a, const Tensor& b) {
    const Tensor left = a.contiguous();
    const Tensor right = b.contiguous();
    const std::size_t width = size_of(a.dtype());
    std::size_t i = 0;
    while (std::memcmp(left.first_byte() + i * width, right.first_byte() + i * width, width) == 0)
      ++i;
    const auto shown = [&](const Tensor& t) {
      constexpr std::string_view kHex = "0123456789abcdef";
      std::string text = "element " + std::to_string(i) + " is 0x";
      for (std::size_t k = width; k-- > 0;) {
        const auto byte = std::to_integer<unsigned>(t.first_byte()[i * width + k]);
        text += kHex[byte >> 4U];
        text += kHex[byte & 15U];
      }
      return text;
    };
    differ(What::kValue, shown(left), shown(right));
  }

  void compare_attributes(const Dict* a, const Dict* b) {
    if (found_ || !options_.attributes) return;
    // No attributes and an empty dict of them are the same.
    const bool left = a != nullptr && !a->empty();
    const bool right = b != nullptr && !b->empty();
    walk_.below_attributes([&] {
      if (left && right) return compare_containers(Value(*a), Value(*b));
      if (left != right) {
        differ(What::kAttribute, left ? Value(*a).describe() : "no attributes",
               right ? Value(*b).describe() : "no attributes");
      }
    });
  }

  void differ_sharing(const Pairing::Clash& clash, const std::string& how) {
    const auto side = [&](const std::string& first) {
      return first.empty() && walk_.path().text() != first
                 ? "is on its own"
                 : how + " " + (first.empty() ? "(root)" : first);
    };
    differ(What::kSharing, side(clash.left), side(clash.right));
  }

  CompareOptions options_;
  detail::TreeStorages left_, right_;
  detail::Walk walk_;
  std::vector<const void*> open_;
  Pairing storages_, tensors_, containers_;
  std::optional<Difference> found_;
};

}  // namespace

std::optional<Difference> compare(const Value& a, const Value& b, const CompareOptions& options) {
  return Comparer(a, b, options).run(a, b);
}

std::string_view to_string(Difference::What what) noexcept {
  switch (what) {
    case What::kKind:
      return "kind";
    case What::kKeys:
      return "keys";
    case What::kLength:
      return "length";
    case What::kValue:
      return "value";
    case What::kDType:
      return "dtype";
    case What::kShape:
      return "shape";
    case What::kStride:
      return "stride";
    case What::kOffset:
      return "offset";
    case What::kDevice:
      return "device";
    case What::kStorage:
      return "storage";
    case What::kAttribute:
      return "attribute";
    case What::kAuxiliary:
      return "auxiliary";
    case What::kSharing:
      return "sharing";
  }
  return "?";
}

namespace {

std::string head(const Difference& difference) {
  return (difference.path.empty() ? std::string("(root)") : difference.path) + ": " +
         std::string(to_string(difference.what)) + ": ";
}

}  // namespace

std::string Difference::describe() const { return head(*this) + left + " against " + right; }

std::string Difference::describe(std::string_view left_name, std::string_view right_name) const {
  return head(*this) + left + " in " + std::string(left_name) + ", " + right + " in " +
         std::string(right_name);
}

}  // namespace meshstage
