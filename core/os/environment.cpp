#include <algorithm>
#include <array>
#include <cstdlib>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/os/environment.hpp>

namespace meshstage {

namespace {

// A test compares this table with what the sources read (tests/structure/check_environment.py).
constexpr std::array kVariables{
    EnvironmentVariable{"MESHSTAGE_RANK", "a number",
                        "this process's rank; overrides the launcher's"},
    EnvironmentVariable{"MESHSTAGE_WORLD_SIZE", "a number", "the number of ranks in the job"},
    EnvironmentVariable{"MESHSTAGE_LOCAL_RANK", "a number", "the rank among those of this host"},
    EnvironmentVariable{"MESHSTAGE_LOCAL_WORLD_SIZE", "a number",
                        "the number of ranks on this host"},
    EnvironmentVariable{"MESHSTAGE_JOB", "[A-Za-z0-9._-]{1,64}",
                        "names the job on its hosts and in its Store; a restart uses the same"},
    EnvironmentVariable{"MESHSTAGE_STORE",
                        "file:/folder, tcp://host:port, redis://[[user]:password@]host[:port][/db]",
                        "where ranks meet; nothing on one host: a folder beside the files"},
    EnvironmentVariable{"MESHSTAGE_HOST", "a host name or an address",
                        "where other hosts reach this one"},
    EnvironmentVariable{"MESHSTAGE_LAUNCH", "any text without spaces",
                        "names one start, the same for all ranks; else the launcher's id"},
    EnvironmentVariable{"MESHSTAGE_TAKE_OVER", "1",
                        "takes the job from another start whose ranks are alive; for one start"},
    EnvironmentVariable{"MESHSTAGE_SUPERVISOR", "a socket's path",
                        "where a rank reports to `meshstage run`, which sets this"},
    EnvironmentVariable{"MESHSTAGE_MODULE_PATH", "folders, separated by ':'",
                        "where the modules (Gloo, CUDA, NCCL) are sought first"},
};

}  // namespace

std::span<const EnvironmentVariable> environment_variables() noexcept { return kVariables; }

std::optional<std::string> environment_variable(std::string_view name) {
  const auto* const known =
      std::find_if(kVariables.begin(), kVariables.end(),
                   [&](const EnvironmentVariable& variable) { return variable.name == name; });
  if (known == kVariables.end()) {
    throw InvalidState(std::string(name) + " is not in the table of environment variables");
  }
  const char* const value = std::getenv(known->name.data());  // a literal: it ends with a zero
  if (value == nullptr) return std::nullopt;
  return value;
}

}  // namespace meshstage
