#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/async/crew.hpp>
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/replica.hpp>
#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/engine.hpp>
#include <meshstage/core/replicate/exchange.hpp>
#include <meshstage/core/replicate/job_notes.hpp>
#include <meshstage/core/replicate/persistence.hpp>

namespace meshstage::replicate {

/// The work of Verifier's thread: reads images in slots, files and stray vaults, and proves them.
/// For images in memory a crew helps, made for one call. The trainer waits meanwhile, so the crew
/// has this rank's whole share of the processors. Each call throws Error if it fails.
/// Threads: ms-verify.
class Proofs {
 public:
  Proofs(Engine& engine, Persistence& files) : engine_(engine), files_(files) {}

  /// An image of this rank that lies in none of its slots: in a file, in a stray vault, or in an
  /// older incarnation of its own vault.
  struct Here {
    std::filesystem::path file;
    std::shared_ptr<const StraySlot> stray{};      ///< Null: in the file.
    std::shared_ptr<const MappedFile> of_other{};  ///< Of another number of ranks: the proven file.
  };
  /// Files, and images in stray vaults and older incarnations.
  struct Found {
    std::vector<protocol::Claim> claims;
    std::vector<Here> places;  ///< Of each claim.
    ImageId evidence;          ///< The newest id in a file's name, or base in a stray's header.
    std::string damage;        ///< In words what is wrong with others.
    std::vector<protocol::OldStep> named;  ///< Persistence::old_steps(), at rank 0 if asked for.
    std::uint64_t room = 0;                ///< Persistence::room(), at rank 0 if asked for.
  };
  /// The storages that a lender must send to complete a replica in the memory of a whole image.
  struct Missing {
    int lender = -1;
    exchange::Want want;
    std::vector<ImageRange> ranges;  ///< Their places in the image.
  };
  /// Bytes that stay valid as long as `keep` lives.
  struct Source {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> keep;
    std::vector<ImageRange> ranges;  ///< For lent(): the places of the storages.
  };

  using Failed = std::function<void(ErrorKind kind, const std::string& why)>;
  /// Runs `work`, and then on the loop, as part of the ticket's generation, `then` with the result.
  /// If `work` fails or there is no memory, `failed` runs there instead.
  template <class Result>
  void answer(const TaskScope::Ticket& ticket, const std::function<Result()>& work,
              const std::function<void(const Result&)>& then, const Failed& failed) {
    const auto fail = [&](ErrorKind kind, const std::string& why) {
      engine_.to_loop(ticket, [failed, kind, why] { failed(kind, why); });
    };
    try {
      auto result = std::make_shared<const Result>(work());
      // Moved: it may have the lease of a slot, and the loop must see it go.
      engine_.to_loop(ticket, [then, result = std::move(result)] { then(*result); });
    } catch (const Error& e) {
      fail(e.kind(), e.what());
    } catch (const std::bad_alloc&) {
      fail(ErrorKind::kOutOfMemory, "no memory for proving an image");
    }
  }

  // Each as the function of Verifier with that name:
  [[nodiscard]] protocol::SlotsVerified slots(const JobNotes& notes);
  [[nodiscard]] Found disk(const protocol::VerifyDisk& action);
  [[nodiscard]] protocol::OldPublished publish_old(const protocol::PublishOld& action,
                                                   std::span<const StraySlot> strays) const;
  [[nodiscard]] protocol::OldFound find_old(const protocol::FindOld& action) const;
  void leave_files() { files_.leave(); }
  [[nodiscard]] ImageInfo load(const Here& from, std::span<std::byte> target,
                               const protocol::ImageSizes& sizes) const;
  [[nodiscard]] static std::vector<Missing> missing(std::span<const std::byte> image,
                                                    const protocol::ImageSizes& sizes, ImageId id);
  [[nodiscard]] static ImageInfo prove(int from, std::span<std::byte> image, Digest manifest,
                                       const ImageIdentity& identity);
  [[nodiscard]] Source open(const protocol::Claim& claim, const Here& here) const;
  [[nodiscard]] Source lent(const exchange::Want& want, int slot, int to) const;

 private:
  void add_files(ImageId newer_than, Found& found);
  void add_strays(ImageId newer_than, Found& found) const;
  [[nodiscard]] Crew crew_of_waiting_trainer() const;
  /// Whether the job finished after that image was staged.
  [[nodiscard]] bool is_over(ImageId id) const { return id.generation <= finished_; }
  [[nodiscard]] Source bytes_of(const Here& here) const;

  Engine& engine_;
  Persistence& files_;
  std::uint64_t finished_ = 0;  ///< JobNotes::finished, since slots().
};

}  // namespace meshstage::replicate
