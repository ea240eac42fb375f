#pragma once
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// One environment variable that meshstage reads.
struct EnvironmentVariable {
  std::string_view name;
  std::string_view value;    ///< The values that it may have.
  std::string_view meaning;  ///< One line, for people.
};

/// Every variable of the name MESHSTAGE_* that the library and its command read, in the order in
/// which `meshstage help environment` prints them. The variables that launchers set are in
/// RankEnvironment. Threads: any.
[[nodiscard]] MESHSTAGE_API std::span<const EnvironmentVariable> environment_variables() noexcept;

/// The value of one of environment_variables() in this process; nothing if it is not set.
/// Throws InvalidState for a name that is not in the table: a reader must add it there.
/// Threads: any, while none changes the environment.
[[nodiscard]] MESHSTAGE_API std::optional<std::string> environment_variable(std::string_view name);

}  // namespace meshstage
