#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include <meshstage/core/tensor/storage_groups.hpp>

namespace meshstage::detail {
namespace {

// Storages with indices [first, last) of an order by address, which overlap one another in a row.
Storage spanning(const std::vector<const Storage*>& members) {
  std::byte* const begin = members.front()->data();
  std::byte* end = begin;
  StorageTraits traits{.pinned = true, .shared = true, .external = true};
  for (const auto* m : members) {
    end = std::max(end, m->data() + m->nbytes());
    traits.pinned &= m->is_pinned();
    traits.shared &= m->is_shared();
    traits.read_only |= m->traits().read_only;
  }
  const auto bytes = static_cast<std::size_t>(end - begin);
  for (const auto* m : members) {
    if (m->data() == begin && m->nbytes() == bytes) return *m;
  }
  auto owner = std::make_shared<std::vector<Storage>>();
  for (const auto* m : members) owner->push_back(*m);
  return Storage::wrap(begin, bytes, std::move(owner), std::move(traits),
                       members.front()->device());
}

}  // namespace

StorageGroups group_storages(std::vector<Storage> storages) {
  StorageGroups result;
  const auto count = storages.size();
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  result.places.resize(count);
  for (const auto i : order) result.places[i].group = i;
  if (std::none_of(storages.begin(), storages.end(),
                   [](const Storage& s) { return s.traits().external; })) {
    result.groups = std::move(storages);
    return result;
  }

  const auto less = std::less<const std::byte*>();
  // Each device has addresses of its own.
  const auto place = [&](std::uint32_t i) {
    const auto device = storages[i].device();
    return std::pair(device.type, device.index);
  };
  std::sort(order.begin(), order.end(), [&](auto a, auto b) {
    return place(a) != place(b) ? place(a) < place(b)
                                : less(storages[a].data(), storages[b].data());
  });
  // By index of a storage: the group that it is in, as the index of its first member.
  std::vector<std::uint32_t> group_of(count);
  std::vector<Storage> spans(count);
  std::vector<std::uint32_t> open;  // a run by address
  const auto alone = [&](std::uint32_t i) {
    spans[i] = storages[i];
    group_of[i] = i;
  };
  const auto close = [&] {
    const bool external = std::any_of(open.begin(), open.end(),
                                      [&](auto i) { return storages[i].traits().external; });
    if (!external) {
      for (const auto i : open) alone(i);
      open.clear();
      return;
    }
    std::vector<const Storage*> members;
    for (const auto i : open) members.push_back(&storages[i]);
    const auto first = *std::min_element(open.begin(), open.end());
    spans[first] = spanning(members);
    for (const auto i : open) {
      group_of[i] = first;
      result.places[i].offset = static_cast<std::uint64_t>(storages[i].data() - members[0]->data());
    }
    open.clear();
  };
  const std::byte* end = nullptr;
  for (const auto i : order) {
    const auto& s = storages[i];
    // Storages of no byte share with nobody.
    if (s.nbytes() == 0) {
      alone(i);
      continue;
    }
    if (!open.empty() && (place(open.back()) != place(i) || !less(s.data(), end))) close();
    if (open.empty() || less(end, s.data() + s.nbytes())) end = s.data() + s.nbytes();
    open.push_back(i);
  }
  close();
  std::vector<std::uint32_t> number(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    if (group_of[i] == i) {
      number[i] = static_cast<std::uint32_t>(result.groups.size());
      result.groups.push_back(std::move(spans[i]));
    }
    result.places[i].group = number[group_of[i]];
  }
  return result;
}

}  // namespace meshstage::detail
