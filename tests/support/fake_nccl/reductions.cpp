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

Bytes reduced(std::vector<Bytes> parts, Element element, ncclRedOp_t op) {
  namespace arithmetic = collectives::arithmetic;
  static const std::map<int, ReduceOp> operations{{ncclSum, ReduceOp::kSum},
                                                  {ncclProd, ReduceOp::kProduct},
                                                  {ncclMax, ReduceOp::kMax},
                                                  {ncclMin, ReduceOp::kMin},
                                                  {ncclAvg, ReduceOp::kSum}};
  // The last rank first: NCCL's order is none that a caller may count on.
  Bytes result = std::move(parts.back());
  for (std::size_t i = parts.size() - 1; i-- > 0;)
    arithmetic::reduce(result, parts[i], element, operations.at(op));
  if (op == ncclAvg) arithmetic::divide(result, static_cast<int>(parts.size()), element);
  return result;
}

}  // namespace meshstage::fake_nccl
