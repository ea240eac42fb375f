#pragma once
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// Any safetensors file as a state dict: an image of ours gives back its tree (see decode_image();
/// digests are verify_image()'s to check), any other file a flat Dict of tensors by name (see
/// decode_safetensors()). The tensors are read-only views of the mapped file, which they keep
/// mapped. Throws NotFound, IoError, CorruptData (with path() = the tensor, and the byte in the
/// message) for what is not sound; what is no safetensors file at all is called by what it looks
/// like.
///
/// The index of a checkpoint in several files (`model.safetensors.index.json`) is one Dict of all
/// their tensors, by file name, then in the order of their bytes. The index is not trusted: it may
/// name files beside itself only, and each file must have exactly the tensors that the index says.
[[nodiscard]] MESHSTAGE_API Value load_state_file(FileSystem& fs, const std::filesystem::path& path,
                                                  const NodeRegistry& registry = {});

/// Publishes a flat Dict of tensors as a plain safetensors file (see plan_safetensors(),
/// publish_atomically()), which load_state_file() reads back. CPU tensors of any strides; at most
/// 64 MiB are copied at a time. Throws InvalidArgument for what such a file cannot hold,
/// OutOfMemory where the file system has too little room (needed and available are said; nothing
/// was written), IoError.
MESHSTAGE_API void save_safetensors(
    FileSystem& fs, const std::filesystem::path& path, const Dict& tensors,
    const std::vector<std::pair<std::string, std::string>>& metadata = {});

}  // namespace meshstage
