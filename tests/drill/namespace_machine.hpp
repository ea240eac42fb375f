// Whether this machine can have hosts that are namespaces.
#pragma once
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "tests/drill/command_run.hpp"
#include "tests/support/catch.hpp"
#include "tools/hosts/namespace_hosts.hpp"

namespace drill_runs {

/// Why not; nothing: it can.
inline const std::optional<std::string>& no_namespaces() {
  static const auto why = []() -> std::optional<std::string> {
    const TemporaryDirectory directory;
    try {
      meshstage::tools::hosts::NamespaceOptions options;
      options.folder = directory.path();
      options.memory = 1U << 20U;
      const meshstage::tools::hosts::NamespaceHosts hosts(options);
      return std::nullopt;
    } catch (const meshstage::tools::hosts::HostsUnusable& e) {
      return e.what();
    }
  }();
  return why;
}

/// MESHSTAGE_TEST_NAMESPACES=must: a machine without them is a failure.
inline bool must_have_namespaces() {
  const char* value = std::getenv("MESHSTAGE_TEST_NAMESPACES");
  return value != nullptr && std::string_view(value) == "must";
}

}  // namespace drill_runs

/// Ends the test case where there can be no such hosts. It is reported as skipped, or fails if
/// MESHSTAGE_TEST_NAMESPACES says that the machine must have them.
#define MESHSTAGE_NEEDS_NAMESPACES()                                            \
  if (drill_runs::no_namespaces()) {                                            \
    if (drill_runs::must_have_namespaces()) FAIL(*drill_runs::no_namespaces()); \
    WARN("skipped: " << *drill_runs::no_namespaces());                          \
    return;                                                                     \
  }                                                                             \
  static_assert(true, "a semicolon follows")
