#pragma once
#include <span>

#include <meshstage/core/protocol/actions.hpp>
#include <meshstage/core/protocol/events.hpp>
#include <meshstage/core/replicate/persistence.hpp>
#include <meshstage/core/vault/vault.hpp>

namespace meshstage::replicate {

/// Carries out a PublishOld: makes files of the images that the slots of `vault`, and `strays`,
/// have of that step. Returns the owners whose images are files now, and a text for each image that
/// could not be written. Replicas that borrow are put together in memory, one at a time.
/// Threads: any, while nobody writes those slots.
[[nodiscard]] protocol::OldPublished publish_old_images(Vault& vault,
                                                        std::span<const StraySlot> strays,
                                                        const Persistence& files,
                                                        const protocol::PublishOld& action);

}  // namespace meshstage::replicate
