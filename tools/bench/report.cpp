#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <fstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <meshstage/core/os/available_processors.hpp>

#include "tools/bench/bench.hpp"

namespace meshstage::tools::bench {
namespace {

double quantile(std::vector<double> v, std::size_t numerator, std::size_t denominator) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  return v[(v.size() - 1) * numerator / denominator];
}

double rate(const Result& result, double seconds) {
  return seconds > 0 ? static_cast<double>(result.bytes) / 1e9 / seconds : 0;
}

std::string processor_name() {
  std::ifstream lines("/proc/cpuinfo");
  for (std::string line; std::getline(lines, line);) {
    const auto colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

nlohmann::json machine() {
  utsname system{};
  ::uname(&system);
  return {{"processor", processor_name()},
          {"processors", available_processors().count()},
          {"system", std::string(system.sysname) + " " + system.release}};
}

}  // namespace

double Samples::least() const { return quantile(seconds, 0, 1); }
double Samples::median() const { return quantile(seconds, 1, 2); }
double Samples::most() const { return quantile(seconds, 1, 1); }

double seconds_of(const std::function<void()>& what) {
  const auto begin = std::chrono::steady_clock::now();
  what();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::string to_json(const Result& r) {
  const auto time = r.times.median(), limit = r.limit.median();
  nlohmann::ordered_json json{{"what", r.what},
                              {"workload", r.workload},
                              {"device", r.device},
                              {"bytes", r.bytes},
                              {"s", {r.times.least(), time, r.times.most()}},
                              {"first_s", r.first_seconds},
                              {"GBps", rate(r, time)},
                              {"limit_s", {r.limit.least(), limit, r.limit.most()}},
                              {"limit_GBps", rate(r, limit)},
                              {"ratio_to_limit", time > 0 ? limit / time : 0},
                              {"threads", r.threads},
                              {"limit_threads", r.limit_threads},
                              {"connections", r.connections},
                              {"limit_connections", r.limit_connections},
                              {"repeat", r.times.seconds.size()},
                              {"parts", r.parts},
                              {"machine", machine()}};
  return json.dump();
}

std::string to_text(const Result& r) {
  const auto time = r.times.median(), limit = r.limit.median();
  auto text = fmt::format(
      "{} {}{}: {:.3f} GB, {:.2f} ms (least {:.2f}, most {:.2f}; {:.2f} GB/s), the first {:.2f} "
      "ms\n"
      "limit: {:.2f} ms ({:.2f} GB/s); reached {:.2f} of it\n",
      r.what, r.workload, r.device == "cpu" ? "" : " on " + r.device,
      static_cast<double>(r.bytes) / 1e9, time * 1e3, r.times.least() * 1e3, r.times.most() * 1e3,
      rate(r, time), r.first_seconds * 1e3, limit * 1e3, rate(r, limit),
      time > 0 ? limit / time : 0);
  if (r.limit_threads != 0)
    text += fmt::format("threads {}, in the limit {}\n", r.threads, r.limit_threads);
  if (r.limit_connections != 0)
    text += fmt::format("connections {}, in the limit {}\n", r.connections, r.limit_connections);
  for (const auto& [name, part] : r.parts)
    text += fmt::format("  {:<16} {:10.3f} ms\n", name, part * 1e3);
  return text;
}

}  // namespace meshstage::tools::bench
