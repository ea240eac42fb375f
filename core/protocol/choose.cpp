#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <meshstage/core/protocol/choose.hpp>
#include <meshstage/core/protocol/codec.hpp>

namespace meshstage::protocol {

const char* to_string(Place place) noexcept {
  switch (place) {
    case Place::kOwnSlot:
      return "own memory";
    case Place::kHeldSlot:
      return "holder memory";
    case Place::kStray:
      return "stray vault";
    case Place::kKept:
      return "kept memory";
    case Place::kOwnFile:
    case Place::kHeldFile:
      return "disk";
  }
  return "unknown";
}

namespace {

/// For each image id, the ranks of which there is a copy. The key's generation is 0 if they are not
/// told apart.
std::map<ImageId, std::set<int>> owners_by_id(std::span<const Claim> claims, int world_size,
                                              bool generations_apart) {
  std::map<ImageId, std::set<int>> owners;
  for (const Claim& claim : claims) {
    if (claim.owner < 0 || claim.owner >= world_size) continue;
    owners[{generations_apart ? claim.id.generation : 0, claim.id.step}].insert(claim.owner);
  }
  return owners;
}

/// Which of the claims are whole (see whole_claims).
std::vector<bool> wholeness(std::span<const Claim> claims) {
  std::map<std::pair<ImageId, int>, std::vector<const Claim*>> copies;  // by image and owner
  for (const Claim& claim : claims) copies[{claim.id, claim.owner}].push_back(&claim);
  const auto lent = [&](const Claim& claim, const Loan& wanted) {
    const Loan mine{claim.owner, wanted.digest};
    bool there = !claim.needs_lenders();
    for (const Claim* by : copies[{claim.id, wanted.rank}]) {
      const auto& lent_there = by->lent;
      if (std::find(lent_there.begin(), lent_there.end(), mine) == lent_there.end()) return false;
      there =
          there || by->place == Place::kOwnSlot || (is_left(by->place) && by->vault == by->owner);
    }
    return there;
  };
  std::vector<bool> whole;
  whole.reserve(claims.size());
  for (const Claim& claim : claims) {
    const auto& loans = claim.borrowed;
    whole.push_back(std::all_of(loans.begin(), loans.end(),
                                [&](const Loan& wanted) { return lent(claim, wanted); }));
  }
  return whole;
}

}  // namespace

Claim claim_of(const ImageInfo& info, Loans loans, int at, Place place, int slot) {
  Claim claim;
  claim.at = at;
  claim.owner = info.identity.rank;
  claim.place = place;
  claim.slot = slot;
  claim.world_size = info.identity.world_size;
  claim.id = info.identity.id;
  claim.base = info.identity.base;
  claim.sizes = {info.image_bytes, info.manifest_bytes, info.manifest_digest, info.borrowed_bytes,
                 info.loans};
  claim.image_digest = info.image_digest;
  claim.borrowed = std::move(loans.borrowed);
  claim.lent = std::move(loans.lent);
  return claim;
}

std::vector<Claim> whole_claims(std::span<const Claim> claims) {
  const auto whole = wholeness(claims);
  std::vector<Claim> result;
  for (std::size_t i = 0; i < claims.size(); ++i) {
    if (whole[i]) result.push_back(claims[i]);
  }
  return result;
}

ImageId leave_out_oldest(std::vector<Claim>& claims, std::size_t most_bytes) {
  std::map<ImageId, std::size_t> bytes;  // of all claims to an image
  for (const Claim& claim : claims) bytes[claim.id] += encoded_bytes(claim);
  std::size_t all = 0;
  for (auto it = bytes.rbegin(); it != bytes.rend(); ++it) {
    all += it->second;
    if (all <= most_bytes) continue;
    std::erase_if(claims, [&](const Claim& claim) { return claim.id <= it->first; });
    return it->first;
  }
  return kNoImage;
}

bool same_image(ImageId a, ImageId b, bool generations_apart) {
  return generations_apart ? a == b : a.step == b.step;
}

ImageId choose(std::span<const Claim> claims, int world_size, bool generations_apart) {
  const auto owners = owners_by_id(claims, world_size, generations_apart);
  for (auto it = owners.rbegin(); it != owners.rend(); ++it) {
    if (static_cast<int>(it->second.size()) != world_size) continue;
    ImageId newest = it->first;
    for (const Claim& claim : claims) {
      if (same_image(claim.id, newest, generations_apart)) newest = std::max(newest, claim.id);
    }
    return newest;
  }
  return kNoImage;
}

std::vector<Transfer> plan_transfers(std::span<const Claim> claims, ImageId id,
                                     const std::vector<std::vector<int>>& holders,
                                     bool restore_holders, bool generations_apart,
                                     const CanBorrow& can_borrow) {
  const int world_size = static_cast<int>(holders.size());
  const auto whole = wholeness(claims);
  std::vector<std::vector<std::size_t>> copies(holders.size());  // indices of claims, by owner
  for (std::size_t i = 0; i < claims.size(); ++i) {
    const Claim& claim = claims[i];
    if (same_image(claim.id, id, generations_apart) && claim.owner >= 0 &&
        claim.owner < world_size) {
      copies[static_cast<std::size_t>(claim.owner)].push_back(i);
    }
  }
  std::vector<Transfer> transfers;
  for (int owner = 0; owner < world_size; ++owner) {
    const auto& found = copies[static_cast<std::size_t>(owner)];
    const auto& keepers = holders[static_cast<std::size_t>(owner)];
    const auto restore = [&](int to) {
      const Claim* nearest = nullptr;
      const auto distance = [&](const Claim* c) {
        // Ranks that keep images of one owner are linked; others are to connect first.
        const bool linked =
            c->at == owner || std::find(keepers.begin(), keepers.end(), c->at) != keepers.end();
        return std::tuple(is_file(c->place) ? 1 : 0, c->needs_lenders(),
                          c->at == to ? 0 : (linked ? 1 : 2), static_cast<int>(c->place), c->at);
      };
      for (const std::size_t i : found) {
        const Claim* claim = &claims[i];
        if (is_slot(claim->place) && claim->at == to) return;  // already where it belongs
        if (to == owner && (!whole[i] || (can_borrow && !can_borrow(*claim)))) continue;
        if (nearest == nullptr || distance(claim) < distance(nearest)) nearest = claim;
      }
      if (nearest != nullptr) transfers.push_back({*nearest, to});
    };
    restore(owner);
    if (!restore_holders) continue;
    for (const int holder : keepers) restore(holder);
  }
  return transfers;
}

std::vector<int> ranks_without_image(std::span<const Claim> claims, int world_size) {
  std::set<int> have;
  for (const auto& [id, owners] : owners_by_id(claims, world_size, true)) {
    if (owners.size() >= have.size()) have = owners;  // ascending ids: the newest of equals wins
  }
  std::vector<int> missing;
  for (int rank = 0; rank < world_size; ++rank) {
    if (!have.contains(rank)) missing.push_back(rank);
  }
  return missing;
}

}  // namespace meshstage::protocol
