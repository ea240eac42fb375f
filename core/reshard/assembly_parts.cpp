#include <meshstage/core/reshard/assembly_parts.hpp>

#include <algorithm>

#include <meshstage/core/reshard/assembly_impl.hpp>

namespace meshstage::detail {

void AssemblyParts::check(const Assembly& assembly) {
  check_overlaps(assembly.plan_->state, assembly.plan_->targets);
}

std::vector<std::byte> AssemblyParts::taken(const Assembly& assembly) {
  std::vector<std::byte> all;
  for (const OfSome& some : assembly.plan_->of_some) all.push_back(std::byte{some.taken});
  return all;
}

void AssemblyParts::require_all_taken(const Assembly& assembly,
                                      std::span<const std::vector<std::byte>> told) {
  const auto& of_some = assembly.plan_->of_some;
  for (std::size_t i = 0; i < of_some.size(); ++i) {
    const auto takes = [&](const std::vector<std::byte>& one) {
      return one.size() != of_some.size() || one[i] != std::byte{0};
    };
    if (std::any_of(told.begin(), told.end(), takes)) continue;
    throw mismatch(of_some[i].path,
                   "some ranks of the old job have it, and no rank of this job does");
  }
}

}  // namespace meshstage::detail
