#include <meshstage/core/replicate/verifier.hpp>

#include <utility>

namespace meshstage::replicate {

Verifier::Verifier(Engine& engine, Persistence& files)
    : engine_(engine), proofs_(engine, files), worker_("ms-verify", engine.boundary()) {}

template <class Result>
void Verifier::run(std::function<Result()> work, std::function<void(const Result&)> then,
                   Failed failed) {
  auto ticket = engine_.scope.enter();
  if (!ticket) return;
  worker_.post([this, call = std::move(work), ok = std::move(then), bad = std::move(failed),
                ticket] { proofs_.answer(ticket, call, ok, bad); });
}

Verifier::Failed Verifier::lose_generation(const char* what) {
  return [this, what](ErrorKind, const std::string& why) {
    engine_.lose(-1, ErrorKind::kPeerLost,
                 "rank " + std::to_string(engine_.rank) + " cannot " + what + ": " + why);
  };
}

void Verifier::slots(const JobNotes& notes,
                     std::function<void(const protocol::SlotsVerified&)> then) {
  run<protocol::SlotsVerified>([this, notes] { return proofs_.slots(notes); }, std::move(then),
                               lose_generation("read its vault"));
}

void Verifier::disk(const protocol::VerifyDisk& action, std::function<void(const Found&)> then) {
  run<Found>([this, action] { return proofs_.disk(action); }, std::move(then),
             lose_generation("look for images on its host"));
}

void Verifier::publish_old(const protocol::PublishOld& action, const Found& found,
                           std::function<void(const protocol::OldPublished&)> then) {
  std::vector<StraySlot> strays;
  for (const Here& here : found.places) {
    if (here.stray) strays.push_back(*here.stray);
  }
  run<protocol::OldPublished>(
      [this, action, old = std::move(strays)] { return proofs_.publish_old(action, old); },
      std::move(then), lose_generation("read the images of an old job"));
}

void Verifier::find_old(const protocol::FindOld& action,
                        std::function<void(const protocol::OldFound&)> then) {
  run<protocol::OldFound>([this, action] { return proofs_.find_old(action); }, std::move(then),
                          lose_generation("read the files of an old job"));
}

void Verifier::leave_files() {
  run<bool>(
      [this] {
        proofs_.leave_files();
        return true;
      },
      [](bool) {}, [](ErrorKind, const std::string&) {});
}

void Verifier::connect(const std::vector<int>& peers, std::function<void()> then, Failed failed) {
  run<bool>(
      [this, peers] {
        engine_.bridge.connect(engine_.generation.connect_pairs, peers,
                               Deadline::after(engine_.options.deadline));
        return true;
      },
      [tell = std::move(then)](bool) { tell(); }, std::move(failed));
}

void Verifier::disconnect() {
  run<bool>(
      [this] {
        engine_.bridge.close();
        return true;
      },
      [](bool) {}, [](ErrorKind, const std::string&) {});
}

void Verifier::load(Here from, std::span<std::byte> target, protocol::ImageSizes sizes,
                    std::function<void(const ImageInfo&)> then, Failed failed) {
  run<ImageInfo>(
      [this, from = std::move(from), target, sizes] { return proofs_.load(from, target, sizes); },
      std::move(then), std::move(failed));
}

void Verifier::missing(std::span<const std::byte> image, protocol::ImageSizes sizes, ImageId id,
                       std::function<void(const std::vector<Missing>&)> then, Failed failed) {
  run<std::vector<Missing>>([image, sizes, id] { return Proofs::missing(image, sizes, id); },
                            std::move(then), std::move(failed));
}

void Verifier::prove(int from, std::span<std::byte> image, Digest manifest, ImageIdentity identity,
                     std::function<void(const ImageInfo&)> then, Failed failed) {
  run<ImageInfo>([from, image, manifest,
                  who = std::move(identity)] { return Proofs::prove(from, image, manifest, who); },
                 std::move(then), std::move(failed));
}

void Verifier::open(const protocol::Claim& claim, Here here,
                    std::function<void(const Source&)> then, Failed failed) {
  run<Source>([this, claim, here = std::move(here)] { return proofs_.open(claim, here); },
              std::move(then), std::move(failed));
}

void Verifier::lent(exchange::Want want, int slot, int to, std::function<void(const Source&)> then,
                    Failed failed) {
  run<Source>([this, want = std::move(want), slot, to] { return proofs_.lent(want, slot, to); },
              std::move(then), std::move(failed));
}

}  // namespace meshstage::replicate
