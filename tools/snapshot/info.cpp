// meshstage info: what this build is and what it finds at run time.
#include <fmt/format.h>

#include <ostream>
#include <string>
#include <vector>

#include <meshstage/core/device/runtime.hpp>
#include <meshstage/core/memory/fast_copy.hpp>
#include <meshstage/core/os/environment.hpp>

#include "tools/snapshot/backends.hpp"
#include "tools/snapshot/build_info.hpp"
#include "tools/snapshot/snapshot.hpp"
#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

using Json = nlohmann::ordered_json;

struct Feature {
  std::string name, use;
};

std::vector<Feature> cpu_features() {
  std::vector<Feature> features;
  features.push_back({"copies", has_streaming_copy() ? fmt::format("AVX2, streaming stores from {}",
                                                                   size_text(kStreamingCrossover))
                                                     : "memcpy (no AVX2)"});
#if defined(__x86_64__)
  __builtin_cpu_init();
  features.push_back({"digests", __builtin_cpu_supports("avx512f") ? "XXH3, AVX-512 where it helps"
                                 : __builtin_cpu_supports("avx2")  ? "XXH3, AVX2"
                                                                   : "XXH3, SSE2"});
#else
  features.push_back({"digests", "XXH3, as compiled"});
#endif
  return features;
}

/// The variables that are set, in the table's order. A Store's password is not shown.
std::vector<Feature> variables_set() {
  std::vector<Feature> set;
  for (const auto& variable : environment_variables()) {
    auto value = environment_variable(variable.name);
    if (!value) continue;
    const auto scheme = value->find("://");
    const auto at = value->rfind('@');
    if (scheme != std::string::npos && at != std::string::npos && at > scheme) {
      value->replace(scheme + 3, at - scheme - 3, "***");
    }
    set.push_back({std::string(variable.name), *value});
  }
  return set;
}

}  // namespace

int show_info(const InfoOptions& options, std::ostream& out) {
  const auto backends = find_backends();
  const auto devices = device_support(DeviceType::kCuda).devices;
  const auto features = cpu_features();
  if (options.json) {
    Json json{{"version", kVersion},         {"compiler", kCompiler},
              {"build_type", kBuildType},    {"backends", Json::array()},
              {"configured", Json::array()}, {"cpu", Json::object()},
              {"devices", Json::array()}};
    for (const auto& b : backends) {
      json["backends"].push_back({{"name", b.name},
                                  {"found", b.found},
                                  {"version", b.version},
                                  {"path", b.path},
                                  {"detail", b.detail}});
    }
    for (const auto* line : kConfigured) json["configured"].push_back(line);
    for (const auto& d : devices) {
      json["devices"].push_back({{"device", to_string(d.device)},
                                 {"name", d.name},
                                 {"memory_bytes", d.memory_bytes},
                                 {"architecture", d.architecture}});
    }
    for (const auto& f : features) json["cpu"][f.name] = f.use;
    json["environment"] = Json::object();
    for (const auto& variable : variables_set()) json["environment"][variable.name] = variable.use;
    print_json(out, json);
    return 0;
  }
  out << "meshstage " << kVersion << " (" << kCompiler << ", " << kBuildType << ")\n\n";
  Columns columns({}, {});
  for (const auto& b : backends) {
    columns.add({"backend", b.name, b.found ? b.version : "not found",
                 printable(b.found ? b.path : b.detail, 2000)});
  }
  for (const auto& d : devices) {
    columns.add({"device", to_string(d.device), d.name,
                 size_text(d.memory_bytes) + ", architecture " + d.architecture});
  }
  for (const auto& f : features) columns.add({"cpu", f.name, f.use});
  for (const auto& variable : variables_set()) {
    columns.add({"environment", variable.name, printable(variable.use)});
  }
  columns.print(out);
  out << "\n";
  for (const auto* line : kConfigured) out << "configured: " << line << "\n";
  return 0;
}

}  // namespace meshstage::tools
