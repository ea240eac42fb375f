#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/error/little_endian.hpp>
#include <meshstage/core/identity/digest.hpp>
#include <meshstage/core/protocol/codec.hpp>
#include <meshstage/core/protocol/config.hpp>
#include <meshstage/core/protocol/wire_impl.hpp>

namespace meshstage::protocol {

namespace {

using wire::kClaimBytes;
using wire::kDigestBytes;
using wire::kLoanBytes;
using wire::Reader;
using wire::Writer;

constexpr std::uint32_t kMagic = 0x4d50534d;  // "MSPM" as bytes

// --- one pair for each message ---

void write(Writer& w, const Offer& m) {
  w.id(m.id);
  w.id(m.base);
  w.sizes(m.sizes);
  w.orders(m.base_orders);
}
void read(Reader& r, Offer& m) {
  m.id = r.id("id");
  m.base = r.id("base", true);
  if (m.base >= m.id) r.bad("base", to_string(m.base) + " is not older than " + to_string(m.id));
  m.sizes = r.sizes();
  m.base_orders = r.orders();
}
void write(Writer& w, const Accept& m) {
  w.id(m.id);
  w.flag(m.need_manifest);
  w.count(m.held.size());
  for (const Digest& digest : m.held) w.digest(digest);
}
void read(Reader& r, Accept& m) {
  m.id = r.id("id");
  m.need_manifest = r.flag("need manifest");
  m.held.resize(r.count("held blocks", kDigestBytes));
  for (Digest& digest : m.held) digest = r.digest("held blocks");
}
void write(Writer& w, const Sealed& m) {
  w.id(m.id);
  w.digest(m.image_digest);
}
void read(Reader& r, Sealed& m) {
  m.id = r.id("id");
  m.image_digest = r.digest("image digest");
}
void write(Writer& w, const Yes& m) {
  w.id(m.id);
  w.flag(m.wishes.end);
  w.flag(m.wishes.persist);
  w.number(m.wishes.since_disk);
}
void read(Reader& r, Yes& m) {
  m.id = r.id("id");
  m.wishes = r.wishes();
}
void write(Writer& w, const Complete& m) {
  w.id(m.id);
  w.orders(m.orders);
}
void read(Reader& r, Complete& m) {
  m.id = r.id("id");
  m.orders = r.orders();
}
void write(Writer& w, const Failed& m) {
  w.id(m.id);
  w.rank(m.rank);
  w.text(m.why);
}
void read(Reader& r, Failed& m) {
  m.id = r.id("id");
  m.rank = r.rank("rank", true);
  m.why = r.text("why");
}
void write(Writer& w, const Have& m) {
  w.flag(m.disk);
  w.count(m.claims.size());
  for (const Claim& claim : m.claims) w.claim(claim);
  w.id(m.evidence);
  w.text(m.damage);
  w.id(m.beyond);
}
void read(Reader& r, Have& m) {
  m.disk = r.flag("disk");
  m.claims.resize(r.count("claims", kClaimBytes));
  for (Claim& claim : m.claims) {
    claim = r.claim();
    if (is_slot(claim.place) == m.disk) {
      r.bad("claim's kind", m.disk ? "a slot among files" : "a file among slots");
    }
  }
  m.evidence = r.id("evidence", true);
  m.damage = r.text("damage");
  m.beyond = r.id("beyond", true);
}
void write(Writer& w, const AskDisk& m) {
  w.id(m.newer_than);
  w.id(m.up_to);
}
void read(Reader& r, AskDisk& m) {
  m.newer_than = r.id("newer than", true);
  m.up_to = r.id("up to", true);
}
void write(Writer& w, const Choice& m) {
  w.id(m.id);
  w.id(m.base);
  w.count(m.transfers.size());
  for (const Transfer& transfer : m.transfers) {
    w.claim(transfer.source);
    w.rank(transfer.to);
  }
}
void read(Reader& r, Choice& m) {
  m.id = r.id("id", true);
  m.base = r.id("base", true);
  m.transfers.resize(r.count("transfers", kClaimBytes + 4));
  for (Transfer& transfer : m.transfers) {
    transfer.source = r.claim();
    transfer.to = r.rank("transfer's destination");
  }
}
void write(Writer& w, const Failure& m) {
  w.number(static_cast<std::uint8_t>(m.kind));
  w.rank(m.rank);
  w.count(m.ranks.size());
  for (const int rank : m.ranks) w.rank(rank);
  w.text(m.path);
  w.text(m.why);
}
void read(Reader& r, Failure& m) {
  m.kind = r.error_kind("kind");
  m.rank = r.rank("rank", true);
  m.ranks.resize(r.count("ranks", 4));
  for (int& rank : m.ranks) rank = r.rank("ranks");
  m.path = r.text("path");
  m.why = r.text("why");
}
/// How the structure of a rank differs; nothing if none does.
void write(Writer& w, const std::optional<Failure>& mismatch) {
  w.flag(mismatch.has_value());
  if (mismatch) write(w, *mismatch);
}
void read(Reader& r, std::optional<Failure>& mismatch) {
  if (!r.flag("mismatch")) return;
  read(r, mismatch.emplace());
  if (mismatch->kind != ErrorKind::kStructureMismatch || mismatch->rank < 0) {
    r.bad("mismatch", "no structure of a rank");
  }
}
void write(Writer& w, const Ready& m) { write(w, m.mismatch); }
void read(Reader& r, Ready& m) { read(r, m.mismatch); }
void write(Writer& w, const Established& m) { w.id(m.id); }
void read(Reader& r, Established& m) { m.id = r.id("id", true); }
void write(Writer& w, const GiveUp& m) { write(w, m.failure); }
void read(Reader& r, GiveUp& m) { read(r, m.failure); }
void write(Writer& w, const OnDisk& m) { w.id(m.id); }
void read(Reader& r, OnDisk& m) { m.id = r.id("id"); }
void write(Writer& w, const AllOnDisk& m) { w.id(m.id); }
void read(Reader& r, AllOnDisk& m) { m.id = r.id("id"); }
void write(Writer&, const WantFinish&) {}
void read(Reader&, WantFinish&) {}
void write(Writer&, const Finish&) {}
void read(Reader&, Finish&) {}
void write(Writer& w, const Death& m) {
  w.rank(m.rank);
  w.number(static_cast<std::uint8_t>(m.kind));
  w.text(m.why);
}
void read(Reader& r, Death& m) {
  m.rank = r.rank("rank", true);
  m.kind = r.error_kind("kind");
  m.why = r.text("why");
}

void write(Writer& w, const Borrow& m) {
  w.id(m.id);
  w.number(m.bytes);
  w.digest(m.digest);
}
void read(Reader& r, Borrow& m) {
  m.id = r.id("id");
  m.bytes = r.number<std::uint64_t>("bytes");
  m.digest = r.digest("digest");
}
void write(Writer& w, const Differ& m) { w.id(m.id); }
void read(Reader& r, Differ& m) { m.id = r.id("id"); }

void write(Writer& w, const StreamStart& m) {
  w.rank(m.owner);
  w.id(m.id);
  w.number(static_cast<std::uint8_t>(m.content));
  w.flag(m.with_manifest);
  w.number(m.image_bytes);
  w.number(m.manifest_bytes);
  w.number(m.block_bytes);
  w.number(m.borrowed_bytes);
  w.number(m.loans);
  w.flag(m.masked);
  w.number(m.connections);
}
void read(Reader& r, StreamStart& m) {
  m.owner = r.rank("owner");
  m.id = r.id("id");
  m.content = static_cast<Content>(r.small("content", 1));
  m.with_manifest = r.flag("with manifest");
  m.image_bytes = r.number<std::uint64_t>("image bytes");
  m.manifest_bytes = r.number<std::uint64_t>("manifest bytes");
  m.block_bytes = r.number<std::uint64_t>("block bytes");
  m.borrowed_bytes = r.number<std::uint64_t>("borrowed bytes");
  m.loans = r.number<std::uint32_t>("loans");
  m.masked = r.flag("masked");
  m.connections = r.number<std::uint8_t>("connections");
  if (m.connections == 0) r.bad("connections", "0");
  if (m.image_bytes > kMostImageBytes) r.bad("image bytes", std::to_string(m.image_bytes));
  if (m.block_bytes == 0) r.bad("block bytes", "0");
  if (m.manifest_bytes > m.image_bytes) {
    r.bad("manifest bytes",
          std::to_string(m.manifest_bytes) + " of an image of " + std::to_string(m.image_bytes));
  }
  if (m.borrowed_bytes > m.image_bytes - m.manifest_bytes) {
    r.bad("borrowed bytes",
          std::to_string(m.borrowed_bytes) + " of an image of " + std::to_string(m.image_bytes));
  }
}
void write(Writer& w, const Want& m) {
  w.id(m.id);
  w.count(m.storages.size());
  for (const NamedStorage& storage : m.storages) {
    w.number(storage.bytes);
    w.name(storage.name);
  }
}
void read(Reader& r, Want& m) {
  m.id = r.id("id");
  m.storages.resize(r.count("storages", kNamedStorageBytes));
  std::uint64_t all = 0;
  for (NamedStorage& storage : m.storages) {
    storage.bytes = r.number<std::uint64_t>("storage's bytes");
    if (storage.bytes == 0 || storage.bytes > kMostImageBytes - all) {
      r.bad("storage's bytes", std::to_string(storage.bytes));
    }
    all += storage.bytes;
    storage.name = r.name("storage's name");
  }
}

void write(Writer& w, const Overdue& m) {
  w.id(m.id);
  w.number(m.times);
}
void read(Reader& r, Overdue& m) {
  m.id = r.id("id", true);
  m.times = r.number<std::uint32_t>("times");
}

void write(Writer& w, const Publish& m) {
  w.id(m.step.id);
  w.number(static_cast<std::uint32_t>(m.step.world_size));
  w.flag(m.replicas);
  write(w, m.mismatch);
}
void read(Reader& r, Publish& m) {
  m.step.id = r.id("id");
  const auto world = r.number<std::uint32_t>("old world size");
  if (world == 0 || world > static_cast<std::uint32_t>(kMostRanks)) {
    r.bad("old world size", std::to_string(world));
  }
  m.step.world_size = static_cast<int>(world);
  m.replicas = r.flag("replicas");
  read(r, m.mismatch);
}
void write(Writer& w, const Published& m) {
  w.text(m.failed);
  w.count(m.written.size());
  for (const int rank : m.written) w.number(static_cast<std::uint32_t>(rank));
}
void read(Reader& r, Published& m) {
  m.failed = r.text("failed");
  m.written.resize(r.count("written", 4));
  for (int& rank : m.written) {
    const auto old_rank = r.number<std::uint32_t>("old rank");
    if (old_rank >= static_cast<std::uint32_t>(kMostRanks)) {
      r.bad("old rank", std::to_string(old_rank));
    }
    rank = static_cast<int>(old_rank);
  }
}

void write(Writer& w, const Moved& m) {
  w.number(m.count);
  w.flag(m.asks);
}
void read(Reader& r, Moved& m) {
  m.count = r.number<std::uint64_t>("count");
  m.asks = r.flag("asks");
}

template <std::size_t I = 0>
Body read_body(Reader& reader, std::size_t kind) {
  if constexpr (I == std::variant_size_v<Body>) {
    reader.bad("kind", std::to_string(kind) + " is unknown");
  } else {
    if (kind != I) return read_body<I + 1>(reader, kind);
    std::variant_alternative_t<I, Body> body;
    reader.message_is(name_of(Body{body}));
    read(reader, body);
    return body;
  }
}

}  // namespace

std::size_t encoded_bytes(const Claim& claim) noexcept {
  return kClaimBytes + kLoanBytes * (claim.borrowed.size() + claim.lent.size());
}

std::vector<std::byte> with_digest(std::vector<std::byte> message) {
  little_endian::append(message, digest64(message));
  return message;
}

std::optional<std::span<const std::byte>> without_digest(
    std::span<const std::byte> bytes) noexcept {
  if (bytes.size() < kWireDigestBytes) return std::nullopt;
  const auto message = bytes.first(bytes.size() - kWireDigestBytes);
  const auto digest = little_endian::load<std::uint64_t>(bytes.data() + message.size());
  if (digest != digest64(message)) return std::nullopt;
  return message;
}

std::vector<std::byte> encode(const WireContext& context, int sender, const Message& message) {
  Writer writer;
  writer.number(kMagic);
  writer.number(kWireVersion);
  writer.number(static_cast<std::uint16_t>(message.body.index()));
  writer.number(context.job_tag);
  writer.number(static_cast<std::uint32_t>(context.world_size));
  writer.number(static_cast<std::uint32_t>(sender));
  writer.number(message.generation);
  std::visit([&](const auto& body) { write(writer, body); }, message.body);
  return writer.take();
}

Message decode(const WireContext& context, int sender, std::span<const std::byte> bytes) {
  Reader reader(context, sender, bytes);
  if (reader.number<std::uint32_t>("magic") != kMagic) reader.bad("magic", "not a control message");
  const auto version = reader.number<std::uint16_t>("version");
  if (version != kWireVersion) {
    reader.bad("version", std::to_string(version) + ", this library reads " +
                              std::to_string(kWireVersion) + "; use one build on all ranks");
  }
  const auto kind = reader.number<std::uint16_t>("kind");
  if (reader.number<std::uint64_t>("job") != context.job_tag) reader.bad("job", "another job's");
  const auto world = reader.number<std::uint32_t>("world size");
  if (world != static_cast<std::uint32_t>(context.world_size)) {
    reader.bad("world size",
               std::to_string(world) + ", this job has " + std::to_string(context.world_size));
  }
  const auto from = reader.number<std::uint32_t>("sender");
  if (from != static_cast<std::uint32_t>(sender)) {
    reader.bad("sender", "it says rank " + std::to_string(from));
  }
  Message message;
  message.generation = reader.number<std::uint64_t>("generation");
  if (message.generation == 0) reader.bad("generation", "0 is none");
  message.body = read_body(reader, kind);
  reader.end();
  return message;
}

}  // namespace meshstage::protocol
