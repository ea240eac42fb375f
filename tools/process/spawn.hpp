#pragma once
#include <spawn.h>

namespace meshstage::tools {

/// What posix_spawn is told: signals as a shell would start the process, whatever this process
/// blocks, and a process group of its own, so that Ctrl-C reaches this process alone, which then
/// ends the others in order. Add file actions to `actions`.
struct SpawnSettings {
  posix_spawn_file_actions_t actions{};
  posix_spawnattr_t attributes{};
  SpawnSettings();
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;
  ~SpawnSettings();
};

}  // namespace meshstage::tools
