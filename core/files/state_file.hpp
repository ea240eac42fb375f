#pragma once
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage {

/// Loads any safetensors file as a state dict. A meshstage image gives its tree (see
/// decode_image(); only verify_image() checks digests), any other file a flat Dict of tensors by
/// name (see decode_safetensors()). The tensors are read-only views of the mapped file and keep it
/// mapped.
/// Throws NotFound, IoError, and CorruptData for a file that is not sound (path() = the tensor; the
/// message names the byte). If the file is no safetensors file at all, the message says what it
/// looks like.
///
/// The index of a checkpoint in several files (`model.safetensors.index.json`) gives one Dict of
/// the tensors of all files, by file name, then in the order of their bytes. The index is not
/// trusted: it may only name files beside itself, and each file must have exactly the tensors that
/// the index lists.
[[nodiscard]] MESHSTAGE_API Value load_state_file(FileSystem& fs, const std::filesystem::path& path,
                                                  const NodeRegistry& registry = {});

/// The files of which load_state_file(path) reads tensors: `path` alone, or, if it is an index, the
/// files that it names, by name. They need not exist. Throws as load_state_file() does for `path`.
[[nodiscard]] MESHSTAGE_API std::vector<std::filesystem::path> files_of_state(
    FileSystem& fs, const std::filesystem::path& path);

/// Publishes a flat Dict of tensors as a plain safetensors file (see plan_safetensors(),
/// publish_atomically()), which load_state_file() reads back. CPU tensors of any strides; at most
/// 64 MiB are copied at a time. Throws IoError, and InvalidArgument for values that such a file
/// cannot hold. Throws OutOfMemory if the file system has too little room: the message says the
/// bytes needed and available, and nothing was written.
MESHSTAGE_API void save_safetensors(
    FileSystem& fs, const std::filesystem::path& path, const Dict& tensors,
    const std::vector<std::pair<std::string, std::string>>& metadata = {});

}  // namespace meshstage
