#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include <meshstage/core/image/blocks.hpp>
#include <meshstage/core/reshard/step_on_disk.hpp>
#include <meshstage/core/tensor/storage.hpp>

namespace meshstage {

/// The image of one old rank.
struct StepStates::OpenImage {
  OpenImage(std::filesystem::path where, std::shared_ptr<const void> owner, ImageProof ends,
            std::optional<Storage> others = {})
      : path(std::move(where)),
        keep(std::move(owner)),
        proof(std::move(ends)),
        room(std::move(others)) {}

  std::filesystem::path path;  ///< Of its file; in words where other ranks have it.
  std::shared_ptr<const void> keep;
  ImageProof proof;
  std::uint64_t values_begin = 0;  ///< The plain values lie behind the storages, from here on.
  std::optional<Storage> room;     ///< Its bytes, if they come from other ranks.
};

}  // namespace meshstage
