#include <algorithm>
#include <span>

#include <meshstage/core/reshard/assembly_impl.hpp>
#include <meshstage/core/reshard/plain_impl.hpp>
#include <meshstage/core/tree/compare.hpp>

namespace meshstage::detail {
namespace {

std::string at(const OldValue& old) {
  return " at rank " + std::to_string(old.rank) + " of the old job";
}

Value sum_of_scalars(const std::string& path, const std::vector<OldValue>& old) {
  if (std::all_of(old.begin(), old.end(),
                  [](const OldValue& o) { return o.value.get_if<double>() != nullptr; })) {
    double sum = 0;
    for (const OldValue& o : old) sum += o.value.as<double>();
    return sum;
  }
  std::int64_t sum = 0;
  for (const OldValue& o : old) {
    const auto* number = o.value.get_if<std::int64_t>();
    if (number == nullptr) {
      throw mismatch(path, "there is no sum of " + o.value.describe() + at(o) +
                               ": integers or doubles can be summed");
    }
    if (__builtin_add_overflow(sum, *number, &sum)) {
      throw mismatch(path, "the sum over the ranks of the old job does not fit 64 signed bits");
    }
  }
  return sum;
}

template <class T>
void add(const Tensor& sum, const Tensor& summand) {
  const std::span<T> to(sum.data<T>(), static_cast<std::size_t>(sum.numel()));
  const T* from = summand.data<const T>();
  for (std::size_t i = 0; i < to.size(); ++i) {
    if constexpr (std::is_integral_v<T>) {  // wraps, as a tensor's sum does
      using Unsigned = std::make_unsigned_t<T>;
      to[i] = static_cast<T>(static_cast<Unsigned>(to[i]) + static_cast<Unsigned>(from[i]));
    } else {
      to[i] += from[i];
    }
  }
}

Tensor sum_of_tensors(const std::string& path, const std::vector<Tensor>& summands) {
  const auto& first = summands.front();
  const Tensor sum = Tensor::zeros(first.shape(), first.dtype());
  for (const Tensor& each : summands) {
    const Tensor summand = each.contiguous();
    switch (first.dtype()) {
      case DType::kF32:
        add<float>(sum, summand);
        break;
      case DType::kF64:
        add<double>(sum, summand);
        break;
      case DType::kI32:
        add<std::int32_t>(sum, summand);
        break;
      case DType::kI64:
        add<std::int64_t>(sum, summand);
        break;
      default:
        throw mismatch(path, "tensors of " + std::string(to_string(first.dtype())) +
                                 " cannot be summed: F32, F64, I32 and I64 can");
    }
  }
  return sum;
}

}  // namespace

void PlainRule::differ(const OldValue& a, const OldValue& b) const {
  std::string what = a.value.describe() + at(a) + " and ";
  what += b.value.describe() + " at rank " + std::to_string(b.rank);
  throw mismatch(path,
                 "the ranks of the old job differ (" + what +
                     "), and nothing says what that means for ranks of another number or cut: let "
                     "ReshardOptions::plain (Python: any_world) call it kFirst, kPerRank or "
                     "kSummed (\"first\", \"per rank\", \"summed\")");
}

const OldValue* PlainRule::of_this_rank(const std::vector<OldValue>& old) const {
  const auto it = std::find_if(old.begin(), old.end(),
                               [&](const OldValue& o) { return o.rank == new_rank.rank; });
  return it == old.end() ? nullptr : &*it;
}

void PlainRule::check_all_have_it(const std::vector<OldValue>& old) const {
  if (static_cast<int>(old.size()) == old_ranks) return;
  throw mismatch(path, "it is to be summed, and only " + std::to_string(old.size()) + " of " +
                           std::to_string(old_ranks) +
                           " ranks of the old job have it; new rank 0 gets the sum, so all ranks "
                           "must have the path");
}

Value PlainRule::scalar(const std::vector<OldValue>& old) const {
  for (const OldValue& o : old) {
    if (!o.value.is_scalar()) {
      throw mismatch(path, "it is a plain value here, and " + o.value.describe() + at(o));
    }
  }
  switch (kind) {
    case PlainKind::kSame:
      for (const OldValue& o : old) {
        if (compare(old.front().value, o.value)) differ(old.front(), o);
      }
      return old.front().value;
    case PlainKind::kFirst:
    case PlainKind::kPerRank:
      return old.front().value;
    case PlainKind::kSummed: {
      check_all_have_it(old);
      Value sum = sum_of_scalars(path, old);
      if (new_rank.rank == 0) return sum;
      return sum.get_if<double>() != nullptr ? Value(0.0) : Value(0);
    }
  }
  throw InvalidArgument(path + ": ReshardOptions::plain gives no PlainKind");
}

std::optional<Tensor> PlainRule::tensor(const std::vector<OldValue>& old) const {
  const auto* first = old.front().value.get_if<Tensor>();
  for (const OldValue& o : old) {
    const auto* tensor = o.value.get_if<Tensor>();
    if (tensor == nullptr || tensor->dtype() != first->dtype()) {
      throw mismatch(path, "it is " + old.front().value.describe() + at(old.front()) + " and " +
                               o.value.describe() + at(o));
    }
    if (kind == PlainKind::kSummed && tensor->shape() != first->shape()) differ(old.front(), o);
  }
  switch (kind) {
    case PlainKind::kSame:
      for (const OldValue& o : old) {
        // What every old rank has every new one has, so they can share the work.
        const bool another_compares =
            static_cast<int>(old.size()) == old_ranks && !new_rank.compares(o.rank);
        if (&o == &old.front() || another_compares) continue;
        if (new_rank.differ(*first, o.value.as<Tensor>())) differ(old.front(), o);
      }
      return *first;
    case PlainKind::kFirst:
      return *first;
    case PlainKind::kPerRank: {
      const OldValue* mine = of_this_rank(old);
      return mine == nullptr ? std::nullopt : std::optional<Tensor>(mine->value.as<Tensor>());
    }
    case PlainKind::kSummed: {
      check_all_have_it(old);
      if (new_rank.rank != 0) return Tensor::zeros(first->shape(), first->dtype());
      std::vector<Tensor> summands;
      for (const OldValue& o : old) summands.push_back(new_rank.proven(o.value.as<Tensor>()));
      if (new_rank.only_asks) return Tensor::zeros(first->shape(), first->dtype());
      return sum_of_tensors(path, summands);
    }
  }
  throw InvalidArgument(path + ": ReshardOptions::plain gives no PlainKind");
}

}  // namespace meshstage::detail
