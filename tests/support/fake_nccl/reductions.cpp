#include "tests/support/fake_nccl/reductions.hpp"

#include <map>
#include <utility>

#include <meshstage/core/comm/reduce.hpp>

namespace meshstage::fake_nccl {

using collectives::Element;
using collectives::ReduceOp;

bool find_element(ncclDataType_t type, Element* element) {
  static const std::map<int, Element> elements{
      {ncclUint8, Element::kU8},    {ncclInt8, Element::kI8},      {ncclInt32, Element::kI32},
      {ncclInt64, Element::kI64},   {ncclFloat16, Element::kF16},  {ncclFloat32, Element::kF32},
      {ncclFloat64, Element::kF64}, {ncclBfloat16, Element::kBF16}};
  const auto found = elements.find(type);
  if (found == elements.end()) return false;
  *element = found->second;
  return true;
}

std::size_t size_of(Element element) {
  std::size_t bytes = 0;
  collectives::arithmetic::with_element(element,
                                        [&]<class E>(E) { bytes = sizeof(typename E::Stored); });
  return bytes;
}

namespace {

namespace arithmetic = collectives::arithmetic;

/// NCCL makes a mean of floating numbers as the sum of each rank's part times 1/n, both of the
/// element's type.
void multiply_by_one_nth(Bytes& part, Element element, std::size_t n) {
  arithmetic::with_element(element, [&]<class E>(E) {
    using Value = typename E::Value;
    const Value factor = E::load(E::store(static_cast<Value>(1.0 / static_cast<double>(n))));
    arithmetic::combine<E>(
        part.data(), part.data(), part.size(),
        [factor](Value a, Value /*same*/) { return static_cast<Value>(a * factor); });
  });
}

}  // namespace

Bytes reduced(std::vector<Bytes> parts, Element element, ncclRedOp_t op) {
  static const std::map<int, ReduceOp> operations{{ncclSum, ReduceOp::kSum},
                                                  {ncclProd, ReduceOp::kProduct},
                                                  {ncclMax, ReduceOp::kMax},
                                                  {ncclMin, ReduceOp::kMin},
                                                  {ncclAvg, ReduceOp::kSum}};
  if (op == ncclAvg) {
    for (auto& part : parts) multiply_by_one_nth(part, element, parts.size());
  }
  // The last rank first: NCCL's order is none that a caller may count on.
  Bytes result = std::move(parts.back());
  for (std::size_t i = parts.size() - 1; i-- > 0;)
    arithmetic::reduce(result, parts[i], element, operations.at(op));
  return result;
}

}  // namespace meshstage::fake_nccl
