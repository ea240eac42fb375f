#pragma once
#include <optional>
#include <string_view>

#include <meshstage/mesh/mesh_file.hpp>

namespace meshstage {

/// The first character that TOML does not allow where it stands: a control character, or one
/// outside ASCII that is neither in a string (but for right behind a backslash) nor in a comment.
/// The parser must not see the latter: toml++ 3.3 tells the compiler that some of them cannot
/// occur. (Found by the fuzz target.)
[[nodiscard]] std::optional<MeshFileError> forbidden_character(std::string_view text);

}  // namespace meshstage
