#include <meshstage/dtensor/arithmetic.hpp>

#include <cmath>
#include <complex>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>

#include <meshstage/core/comm/reduce.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/elements_impl.hpp>
#include <meshstage/dtensor/spec_impl.hpp>

namespace meshstage {
namespace {

namespace arithmetic = collectives::arithmetic;

enum class Operation { kAdd, kMultiply };

InvalidArgument refused(const DTensor& tensor, Operation operation, const std::string& why) {
  return InvalidArgument(std::string(operation == Operation::kAdd ? "adding" : "multiplying by") +
                         " a number: " + why + " (" + tensor.spec().to_string() + ")");
}

/// Whether this rank's elements change. The operation is pushed inwards from the reduction that
/// comes last, the one along the last mesh dimension.
bool applies_here(const DTensor& tensor, Operation operation, Scalar number) {
  const auto coordinate = dtensor::require_coordinate(tensor.mesh(), tensor.rank());
  bool here = true;
  for (std::size_t d = coordinate.size(); d-- > 0;) {
    const Placement& p = tensor.placements()[d];
    if (!p.is_partial()) continue;
    const bool add = operation == Operation::kAdd;
    switch (p.op()) {
      case ReduceOp::kSum:
        if (add) here = here && coordinate[d] == 0;
        break;
      case ReduceOp::kProduct:
        if (add) {
          throw refused(tensor, operation,
                        "a sum cannot be added locally to parts of a product; redistribute "
                        "the partial to Replicate or Shard first");
        }
        here = here && coordinate[d] == 0;
        break;
      case ReduceOp::kMin:
      case ReduceOp::kMax:
        if (!add && !(number.real() >= 0 && std::isfinite(number.real()))) {
          throw refused(tensor, operation,
                        "a factor that is negative or not finite does not keep "
                        "the order of min and max; redistribute the partial to "
                        "Replicate or Shard first");
        }
        break;
      case ReduceOp::kAvg:
        break;
    }
  }
  return here;
}

/// E is an element as stored and as computed with (reduce.hpp).
template <class E>
void apply(const Tensor& tensor, Operation operation, typename E::Value number) {
  dtensor::for_each_run(tensor, [&](std::span<std::byte> run) {
    const auto each = [&](auto f) {
      arithmetic::combine<E>(run.data(), run.data(), run.size(),
                             [&](auto a, auto /*same*/) { return f(a, number); });
    };
    using V = typename E::Value;
    if (operation == Operation::kAdd) {
      each([](V a, V b) { return arithmetic::sum<V>(a, b); });
    } else {
      each([](V a, V b) { return arithmetic::product<V>(a, b); });
    }
  });
}

std::string text_of(Scalar number) {
  if (const auto integer = number.integer<std::int64_t>()) return std::to_string(*integer);
  if (const auto integer = number.integer<std::uint64_t>()) return std::to_string(*integer);
  return std::to_string(number.real());
}

template <class T>
T as_integer(const DTensor& tensor, Operation operation, Scalar number) {
  if (const auto integer = number.integer<T>()) return *integer;
  // A whole number written as a floating one. 2^digits is exact, T's largest value may not be.
  const double limit = std::ldexp(1.0, std::numeric_limits<T>::digits);
  const double least = std::is_signed_v<T> ? -limit : 0;
  if (!number.is_integer() && number.real() >= least && number.real() < limit &&
      std::trunc(number.real()) == number.real()) {
    return static_cast<T>(number.real());
  }
  throw refused(tensor, operation,
                text_of(number) + " is not a whole number that fits " +
                    std::string(to_string(tensor.dtype())) + "; nothing is promoted");
}

template <class T>
void apply_integer(const DTensor& tensor, const Tensor& local, Operation operation, Scalar number,
                   bool here) {
  const T value = as_integer<T>(tensor, operation, number);
  if (here) apply<arithmetic::Plain<T>>(local, operation, value);
}

void apply_any(const DTensor& tensor, const Tensor& local, Operation operation, Scalar number,
               bool here) {
  switch (tensor.dtype()) {
    case DType::kU8:
      return apply_integer<std::uint8_t>(tensor, local, operation, number, here);
    case DType::kI8:
      return apply_integer<std::int8_t>(tensor, local, operation, number, here);
    case DType::kU16:
      return apply_integer<std::uint16_t>(tensor, local, operation, number, here);
    case DType::kI16:
      return apply_integer<std::int16_t>(tensor, local, operation, number, here);
    case DType::kU32:
      return apply_integer<std::uint32_t>(tensor, local, operation, number, here);
    case DType::kI32:
      return apply_integer<std::int32_t>(tensor, local, operation, number, here);
    case DType::kU64:
      return apply_integer<std::uint64_t>(tensor, local, operation, number, here);
    case DType::kI64:
      return apply_integer<std::int64_t>(tensor, local, operation, number, here);
    default:
      break;
  }
  const double real = number.real();
  const auto narrow = static_cast<float>(real);
  switch (tensor.dtype()) {
    case DType::kF16:
      if (here) apply<arithmetic::Half>(local, operation, narrow);
      return;
    case DType::kBF16:
      if (here) apply<arithmetic::BFloat>(local, operation, narrow);
      return;
    case DType::kF32:
      if (here) apply<arithmetic::Plain<float>>(local, operation, narrow);
      return;
    case DType::kF64:
      if (here) apply<arithmetic::Plain<double>>(local, operation, real);
      return;
    case DType::kC64:
      if (here) apply<arithmetic::Plain<std::complex<float>>>(local, operation, narrow);
      return;
    case DType::kC128:
      if (here) apply<arithmetic::Plain<std::complex<double>>>(local, operation, real);
      return;
    default:
      throw refused(tensor, operation, "this dtype has no arithmetic here");
  }
}

DTensor applied(const DTensor& tensor, Operation operation, Scalar number) {
  if (!tensor.to_local().device().is_cpu()) {
    throw refused(tensor, operation,
                  "only CPU tensors are computed with, this one is on " +
                      to_string(tensor.to_local().device()));
  }
  const bool here = applies_here(tensor, operation, number);
  const Tensor local = tensor.to_local().clone();
  apply_any(tensor, local, operation, number, here);
  return DTensor::from_spec(local, tensor.spec(), tensor.rank());
}

}  // namespace

DTensor operator+(const DTensor& tensor, Scalar summand) {
  return applied(tensor, Operation::kAdd, summand);
}

DTensor operator*(const DTensor& tensor, Scalar factor) {
  return applied(tensor, Operation::kMultiply, factor);
}

}  // namespace meshstage
