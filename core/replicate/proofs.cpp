#include <meshstage/core/replicate/proofs.hpp>

#include <algorithm>
#include <iterator>

#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/image/image.hpp>
#include <meshstage/core/memory/copy_parts.hpp>
#include <meshstage/core/memory/fast_copy.hpp>
#include <meshstage/core/replicate/hands.hpp>
#include <meshstage/core/replicate/old_images.hpp>
#include <meshstage/core/transfer/image.hpp>

namespace meshstage::replicate {
namespace {

/// Adds the damage of one image to the text about the images before it.
void add_damage(std::string& to, const std::string& what) { to += (to.empty() ? "" : "; ") + what; }

std::string place_of(SlotKey key, int at) {
  const bool own = key.owner_rank == at;
  return "rank " + std::to_string(at) + "'s " + (own ? "own image" : "replica of rank ") +
         (own ? "" : std::to_string(key.owner_rank)) + " in slot " + std::to_string(key.index);
}

/// The claim of rank `at` to an image in a slot of the vault of rank `vault`, whose header says
/// `said`. Proves it; throws CorruptData.
protocol::Claim claim_of(std::span<const std::byte> bytes, const ImageInfo& said, SlotKey key,
                         int vault, int at, protocol::Place place, Reads& reads, Crew& crew) {
  Reads::Reading reading(&reads, place_of(key, vault));
  reading.step(0, bytes.size());
  const auto read = [&reading](std::uint64_t more) { reading.step(more); };
  const ImageInfo verified = key.owner_rank == vault ? verify_image(bytes, read, &crew)
                                                     : verify_replica(bytes, read, &crew);
  if (verified != said) throw CorruptData("header and image disagree");
  return protocol::claim_of(verified, checked_loans(bytes, verified), at, place, key.index);
}

std::string name_of(const Proofs::Here& here) {
  return here.stray ? place_of(here.stray->key, here.stray->vault) : here.file.string();
}

}  // namespace

Crew Proofs::crew_of_waiting_trainer() const {
  return {"ms-verify", hands_for(engine_.options, Beside::kNothing)};
}

protocol::SlotsVerified Proofs::slots(const JobNotes& notes) {
  protocol::SlotsVerified result;
  result.evidence = notes.complete;
  finished_ = notes.finished;
  try {
    files_.enter(engine_.generation.number);
  } catch (const Error& e) {
    engine_.report.warn(
        std::string("the ranks that share the directory of images cannot be told: ") + e.what());
  }
  Crew crew = crew_of_waiting_trainer();
  // Images that earlier processes left, stopped ones too, count like images that this process
  // sealed.
  for (const SlotKey key : engine_.vault.adopt_older()) {
    engine_.report.info("an older process left " + place_of(key, engine_.rank));
  }
  for (const auto& [key, info] : engine_.vault.slots()) {
    const ImageIdentity& identity = info.image.identity;
    if (identity.id.exists() && is_over(identity.id)) {
      engine_.report.info("passed over: " + place_of(key, engine_.rank) + ", " +
                          to_string(identity.id) + ": the job finished since");
      continue;
    }
    result.evidence = std::max(result.evidence, identity.base);
    if (!info.damaged.empty()) {
      const std::string what =
          place_of(key, engine_.rank) + ": the header is not trusted: " + info.damaged;
      engine_.report.warn(what);
      add_damage(result.damage, what);
    }
    if (info.state != SlotState::kSealed) continue;
    try {
      const ReadLease lease = engine_.vault.read(key);
      const bool own = key.owner_rank == engine_.rank;
      result.claims.push_back(claim_of(lease.image(), lease.info(), key, engine_.rank, engine_.rank,
                                       own ? protocol::Place::kOwnSlot : protocol::Place::kHeldSlot,
                                       engine_.reads, crew));
    } catch (const Error& e) {
      const std::string what = place_of(key, engine_.rank) + ": " + e.what();
      engine_.report.warn("not used: " + what);
      add_damage(result.damage, what);
    }
  }
  return result;
}

Proofs::Found Proofs::disk(const protocol::VerifyDisk& action) {
  Found found;
  add_files(action.newer_than, found);
  if (action.strays) add_strays(action.newer_than, found);
  return found;
}

void Proofs::add_files(ImageId newer_than, Found& found) {
  try {
    const auto complain = [&](const std::string& text) {
      engine_.report.warn(text);
      add_damage(found.damage, text);
    };
    Crew crew = crew_of_waiting_trainer();
    auto files = files_.verify(newer_than, complain, engine_.options.any_world.has_value(), &crew);
    found.evidence = files.newest_named;
    found.claims = std::move(files.claims);
    for (std::size_t i = 0; i < files.paths.size(); ++i) {
      found.places.push_back({std::move(files.paths[i]), nullptr, std::move(files.of_others[i])});
    }
    if (engine_.rank == 0 && engine_.options.any_world) {
      // How much will be written to this disk is known only if all ranks share it.
      const bool one_host = engine_.options.environment->local_world_size == engine_.world_size;
      found.room = one_host || files_.is_shared_by_all() ? files_.room() : ~std::uint64_t{0};
      found.named = files_.old_steps();
    }
  } catch (const Error& e) {
    engine_.report.warn(std::string("the directory of images cannot be read: ") + e.what());
  }
}

void Proofs::add_strays(ImageId newer_than, Found& found) const {
  StraySearch search;
  search.generation = engine_.generation.number;
  search.world_size = engine_.world_size;
  search.warn = [this](const std::string& text) { engine_.report.warn(text); };
  search.any_world = engine_.options.any_world.has_value();
  search.needs = [&config = *engine_.config](int rank, int vault) {
    return config.holds(rank, vault) || config.holds(vault, rank);
  };
  auto slots = engine_.vault.take_strays(search);
  auto older = engine_.vault.left_in_older();
  std::move(older.begin(), older.end(), std::back_inserter(slots));
  const auto place_of_stray = [&](const ImageIdentity& who) {
    const bool kept = engine_.keeps_old_in_memory && who.world_size != engine_.world_size;
    return kept ? protocol::Place::kKept : protocol::Place::kStray;
  };
  Crew crew = crew_of_waiting_trainer();
  for (const StraySlot& slot : slots) {
    if (is_over(slot.image.identity.id)) continue;
    found.evidence = std::max(found.evidence, slot.image.identity.base);
    // What the slots cover may lack copies, which strays give without the wire, or without a copy.
    if (slot.image.identity.id < newer_than) continue;
    try {
      auto claim = claim_of(slot.bytes, slot.image, slot.key, slot.vault, engine_.rank,
                            place_of_stray(slot.image.identity), engine_.reads, crew);
      claim.vault = slot.vault;
      found.claims.push_back(std::move(claim));
      found.places.push_back({{}, std::make_shared<const StraySlot>(slot), nullptr});
    } catch (const Error& e) {
      const std::string what = place_of(slot.key, slot.vault) + ", found by rank " +
                               std::to_string(engine_.rank) + " on its host: " + e.what();
      engine_.report.warn("not used: " + what);
      add_damage(found.damage, what);
    }
  }
}

protocol::OldPublished Proofs::publish_old(const protocol::PublishOld& action,
                                           std::span<const StraySlot> strays) const {
  return publish_old_images(engine_.vault, strays, files_, action);
}

protocol::OldFound Proofs::find_old(const protocol::FindOld& action) const {
  protocol::OldFound found;
  found.named = files_.old_steps();
  if (action.prove) {
    found.proven =
        files_.newest_old_step([this](const std::string& text) { engine_.report.warn(text); });
  }
  return found;
}

Proofs::Source Proofs::bytes_of(const Here& here) const {
  if (here.stray) return {here.stray->bytes, here.stray->keep, {}};
  const auto file = MappedFile::open(engine_.fs, here.file);
  return {file->bytes(), file, {}};
}

ImageInfo Proofs::load(const Here& from, std::span<std::byte> target,
                       const protocol::ImageSizes& sizes) const {
  Reads::Reading reading(&engine_.reads, name_of(from));
  const Source source = bytes_of(from);
  const auto behind_manifest = [&](std::uint64_t bytes) {
    const std::uint64_t without = sizes.image_bytes - sizes.borrowed_bytes;
    if (bytes != sizes.image_bytes && bytes != without) {
      throw CorruptData("the image of " + std::to_string(sizes.image_bytes) + " bytes is one of " +
                        std::to_string(bytes) + " by now");
    }
    return bytes - sizes.manifest_bytes;
  };
  // Borrowed bytes are the first behind the manifest.
  const auto rest = std::min(behind_manifest(source.bytes.size()), behind_manifest(target.size()));
  reading.step(0, sizes.manifest_bytes + rest);
  Crew crew = crew_of_waiting_trainer();
  const auto copy = [&](std::span<std::byte> to, std::span<const std::byte> bytes) {
    CopyParts parts;
    parts.add(to);
    parts.run(&crew, 0, [&](const CopyParts::Piece& piece) {
      fast_copy(piece.of(to), piece.of(bytes), piece.hint);
      reading.step(piece.bytes);
    });
  };
  copy(target.first(sizes.manifest_bytes), source.bytes.first(sizes.manifest_bytes));
  copy(target.last(rest), source.bytes.last(rest));
  if (source.bytes.size() < target.size()) return ImageInfo{};
  const auto read = [&reading](std::uint64_t) { reading.step(); };  // of memory
  return target.size() == sizes.image_bytes ? verify_image(target, read, &crew)
                                            : verify_replica(target, read, &crew);
}

std::vector<Proofs::Missing> Proofs::missing(std::span<const std::byte> image,
                                             const protocol::ImageSizes& sizes, ImageId id) {
  const ImageInfo info = read_info(image);
  if (digest128(image.first(info.manifest_bytes)) != sizes.manifest_digest) {
    throw CorruptData("its manifest is not the one that was announced");
  }
  std::vector<Missing> all;
  for (const auto& part : borrowed_parts(image, info)) {
    Missing missing{part.rank, {id, {}}, ranges_of(part)};
    for (const auto& piece : part.pieces) {
      missing.want.storages.push_back({piece.name, piece.bytes});
    }
    all.push_back(std::move(missing));
  }
  return all;
}

ImageInfo Proofs::prove(int from, std::span<std::byte> image, Digest manifest,
                        const ImageIdentity& identity) {
  const ImageInfo info = read_info(image);
  clear_borrowed_padding(borrowed_parts(image, info), info, image);
  return transfer::prove_image(from, image, manifest, identity);
}

Proofs::Source Proofs::open(const protocol::Claim& claim, const Here& here) const {
  Source source;
  if (!is_slot(claim.place)) {
    const Reads::Reading reading(&engine_.reads, name_of(here));
    source = bytes_of(here);
  } else {
    const auto lease = std::make_shared<ReadLease>(engine_.vault.read({claim.owner, claim.slot}));
    source.bytes = lease->image();
    source.keep = lease;
  }
  const auto& sizes = claim.sizes;
  if (source.bytes.size() !=
      sizes.image_bytes - (claim.needs_lenders() ? sizes.borrowed_bytes : 0)) {
    throw CorruptData("the image changed its size");
  }
  return source;
}

Proofs::Source Proofs::lent(const exchange::Want& want, int slot, int to) const {
  const auto lease = std::make_shared<ReadLease>(engine_.vault.read({engine_.rank, slot}));
  std::vector<std::string> names;
  for (const auto& storage : want.storages) names.push_back(storage.name);
  const auto found = find_ranges(lease->image(), names);
  Source source{lease->image(), lease, {}};
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!found[i] || found[i]->bytes != want.storages[i].bytes) {
      throw make_error<CorruptData>("rank " + std::to_string(engine_.rank) + " has no " + names[i] +
                                    " of " + std::to_string(want.storages[i].bytes) +
                                    " bytes in its image of " + to_string(want.id) +
                                    ", which rank " + std::to_string(to) + " wants");
    }
    source.ranges.push_back(*found[i]);
  }
  return source;
}

}  // namespace meshstage::replicate
