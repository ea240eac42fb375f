#include <sstream>

#include <nlohmann/json.hpp>

#include <meshstage/core/files/state_file.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/temp_directory.hpp"
#include "tools/bench/bench.hpp"
#include "tools/bench/command.hpp"
#include "tools/bench/limits.hpp"
#include "tools/command/command.hpp"

using namespace meshstage;
using namespace meshstage::tools;

namespace {

const bench::Progress kSilent = [](const std::string&) {};

struct Ran {
  int code = 0;
  std::string out, err;
};

Ran command(std::vector<std::string> arguments) {
  std::ostringstream out, err;
  CLI::App app{"test", "meshstage"};
  app.require_subcommand(1);
  add_bench_command(app, out);
  arguments.insert(arguments.begin(), "bench");
  const int code = run_command(app, std::move(arguments), out, err);
  return {code, out.str(), err.str()};
}

}  // namespace

TEST_CASE("every workload is staged, and the report says how") {
  for (const auto* const name : {"gpt2", "gpt2-half", "small", "mid", "big"}) {
    CAPTURE(name);
    bench::Options options;
    options.workload = name;
    options.scale = 0.02;
    options.repeat = 2;
    const auto result = bench::bench_stage(options, kSilent);
    CHECK(result.times.seconds.size() == 2);
    CHECK(result.limit.seconds.size() == 2);
    const auto json = nlohmann::json::parse(bench::to_json(result));
    CHECK(json.at("what") == "stage");
    CHECK(json.at("workload") == name);
    CHECK(json.at("bytes") > 400'000);
    CHECK(json.at("s").size() == 3);
    CHECK(json.at("s")[0] <= json.at("s")[1]);
    for (const auto* const field : {"first_s", "GBps", "limit_GBps", "ratio_to_limit", "threads"})
      CHECK(json.at(field) > 0);
    CHECK(json.at("connections") == 0);
    CHECK(json.at("parts").contains("copy and digest"));
    CHECK(json.at("machine").at("processors") > 0);
    CHECK(bench::to_text(result).find(name) != std::string::npos);
  }
}

TEST_CASE("a file is a workload, and an image is published beside a plain file") {
  const TempDirectory directory;
  const auto path = directory.path() / "model.safetensors";
  const Dict tensors{{"w", Tensor::arange<float>(3000).view({30, 100})},
                     {"b", Tensor::full<float>({17}, 2)}};
  save_safetensors(real_file_system(), path, tensors);
  CHECK_FALSE(compare(bench::make_workload(path.string()), tensors));
  bench::Options options;
  options.workload = path.string();
  options.repeat = 1;
  options.directory = directory.path() / "made";
  const auto result = bench::bench_persist(options, kSilent);
  CHECK(result.what == "persist");
  CHECK(result.bytes == 3017 * 4);
  CHECK(result.times.median() > 0);
  CHECK(result.limit.median() > 0);
  CHECK_FALSE(std::filesystem::exists(options.directory));  // nothing is left
}

TEST_CASE("as much changes from step to step as was asked for") {
  for (const auto& [fraction, pages] :
       std::initializer_list<std::pair<double, int>>{{0, 0}, {0.25, 2}, {0.5, 4}, {1, 8}}) {
    const Dict state{{"a", Tensor::zeros({4 * 1024}, DType::kF32)},
                     {"b", Tensor::zeros({4 * 1024}, DType::kF32)}};
    bench::Changes changes(state, fraction);
    CHECK(changes.state_bytes() == 8 * 4096);
    changes.step();
    int changed = 0;
    for (const auto* const name : {"a", "b"}) {
      const auto bytes = state.at(name).as<Tensor>().storage().bytes();
      for (std::size_t at = 0; at < bytes.size(); at += 4096)
        changed += bytes[at] != std::byte{0} ? 1 : 0;
    }
    CHECK(changed == pages);
  }
}

TEST_CASE("the fastest number of threads is found, and every byte of a limit is moved") {
  CHECK(bench::fastest([](unsigned) {}, 1) == 1);
  bench::MemoryLimit limit(std::uint64_t{9} << 20U);
  for (const unsigned threads : {1U, 2U, 16U}) {
    limit.copy(threads);
    limit.digest(threads);
  }
  CHECK(limit.copied());
}

TEST_CASE("a slot of the limit grows, leaves no file, and files are digested in parts") {
  const TempDirectory directory;
  const auto vault = directory.path() / "vault";
  constexpr std::uint64_t kHad = std::uint64_t{3} << 20U;
  for (const std::uint64_t had : {std::uint64_t{0}, kHad, 2 * kHad}) {
    bench::SlotLimit slot(vault, had, kHad);
    slot.grow();
  }
  CHECK(std::filesystem::is_empty(vault));
  save_safetensors(real_file_system(), directory.path() / "a.safetensors",
                   {{"w", Tensor::arange<float>(3000)}});
  for (const unsigned parts : {1U, 3U}) {
    for (unsigned part = 0; part < parts; ++part) {
      CHECK(bench::digest_files(directory.path(), part, parts, 2) > 3000 * 4 / parts);
    }
  }
}

TEST_CASE("wrong arguments are one line and exit code 2") {
  for (const auto& arguments : std::initializer_list<std::vector<std::string>>{
           {},
           {"sprint"},
           {"stage", "--workload", "huge"},
           {"stage", "--workload", "missing.safetensors"},
           {"stage", "--repeat", "0"},
           {"stage", "--repeat", "-1"},
           {"stage", "--scale", "2"},
           {"replicate", "--ranks", "1"},
           {"replicate", "--changed", "1.5"}}) {
    const auto ran = command(arguments);
    CAPTURE(ran.err);
    CHECK(ran.code == 2);
    CHECK(ran.out.empty());
    CHECK(std::count(ran.err.begin(), ran.err.end(), '\n') == 1);
  }
  const auto help = command({"replicate", "--help"});
  CHECK(help.code == 0);
  CHECK(help.out.find("--ranks") != std::string::npos);
  CHECK(help.out.find("--meet") == std::string::npos);  // for its own processes
}

TEST_CASE("With --json the answer is one line of JSON, and without it people read the same") {
  const auto json = command({"stage", "--workload", "small", "--scale", "0.01", "--repeat", "1",
                             "--threads", "2", "--json"});
  REQUIRE(json.code == 0);
  CHECK(nlohmann::json::parse(json.out).at("threads") == 2);
  const auto text = command({"stage", "--workload", "small", "--scale", "0.01", "--repeat", "1"});
  REQUIRE(text.code == 0);
  CHECK(text.out.find("limit: ") != std::string::npos);
}
