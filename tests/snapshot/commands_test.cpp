// inspect, verify, diff and export of files.
#include <meshstage/core/files/persisted.hpp>
#include <meshstage/core/files/state_file.hpp>
#include <meshstage/core/image/safetensors_dict.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/snapshot/snapshot_support.hpp"
#include "tests/support/catch.hpp"

using namespace meshstage;
using namespace meshstage::test;

namespace {

struct Files {
  TempDirectory temp;
  [[nodiscard]] std::string path(const std::string& name) const {
    return (temp.path() / name).string();
  }
  std::string image(const std::string& name, const Value& state, ImageId id = {3, 85}) const {
    write_file(path(name), image_of(state, "gpt2", 2, id, {3, 80}).bytes());
    return path(name);
  }
};

const nlohmann::json& entry(const nlohmann::json& shown, const std::string& path) {
  for (const auto& e : shown.at("entries")) {
    if (e.at("path") == path) return e;
  }
  throw std::runtime_error("no entry " + path);
}

}  // namespace

TEST_CASE("inspect shows an image's tree, sharing, strides, scalars and identity") {
  const Files files;
  const auto image = files.image("a.safetensors", small_state());
  const auto text = run({"inspect", image});
  INFO(text.out << text.err);
  REQUIRE(text.code == 0);
  for (const char* part :
       {"image of job \"gpt2\", rank 2 of 4, generation 3, step 85", "base: generation 3, step 80",
        "F32[3, 2] strides [1, 3]", "shares storage with model.w", "same list as first",
        "double 0.1", "@scale", "\"two\""}) {
    INFO(part);
    REQUIRE(contains(text.out, part));
  }
  const auto shown = run({"inspect", image, "--json"}).json();
  REQUIRE(shown.at("kind") == "image");
  REQUIRE(shown.at("step") == 85);
  REQUIRE(shown.at("rank") == 2);
  REQUIRE(shown.at("tensors") == 5);
  REQUIRE(shown.at("storages") == 4);
  REQUIRE(entry(shown, "model.head").at("strides") == nlohmann::json{1, 3});
  REQUIRE(entry(shown, "model.head").at("shares_storage_with") == "model.w");
  REQUIRE(entry(shown, "model.w").at("storage") == entry(shown, "model.head").at("storage"));
  REQUIRE(entry(shown, "lr").at("value") == 0.1);
  REQUIRE(entry(shown, "second").at("same_object_as") == "first");
  REQUIRE(entry(shown, "scaled.%@.scale").at("dtype") == "F32");

  const auto part = run({"inspect", image, "--path", "model", "--json"}).json();
  REQUIRE(part.at("entries").size() == 4);
  REQUIRE(run({"inspect", image, "--depth", "1", "--json"}).json().at("entries").size() == 5);
  REQUIRE(run({"inspect", image, "--path", "modem"}).code == 2);
}

TEST_CASE("inspect takes another program's file, whatever its names and dtypes") {
  const Files files;
  const std::string json =
      R"({"__metadata__":{"format":"pt"},"h.0.w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
      R"("q\u001b[31m":{"dtype":"F4","shape":[2,2],"data_offsets":[4,6]}})";
  std::string text;
  for (unsigned i = 0; i < 8; ++i) text += static_cast<char>((json.size() >> (8 * i)) & 0xFFU);
  text += json + "abcdef";
  write_file(files.path("f"), std::as_bytes(std::span(text)));
  const auto answer = run({"inspect", files.path("f")});
  INFO(answer.out << answer.err);
  REQUIRE(answer.code == 0);
  REQUIRE(contains(answer.out, "metadata format = pt"));
  REQUIRE(contains(answer.out, "h.0.w"));
  REQUIRE(contains(answer.out, "F4[2, 2]"));
  REQUIRE(contains(answer.out, "q?[31m"));
  REQUIRE_FALSE(contains(answer.out, "\x1b"));
  const auto shown = run({"inspect", files.path("f"), "--json"}).json();
  REQUIRE(shown.at("kind") == "safetensors");
  REQUIRE(shown.at("metadata").at("format") == "pt");
  REQUIRE(entry(shown, "h.0.w").at("bytes") == 4);

  // And it is a state dict that can be written again, F4 included.
  REQUIRE(run({"export", files.path("f"), "-o", files.path("g")}).code == 0);
  const auto same = run({"diff", files.path("f"), files.path("g")});
  INFO(same.out);
  REQUIRE(same.code == 0);
  REQUIRE(entry(run({"inspect", files.path("g"), "--json"}).json(), "q\x1b[31m").at("dtype") ==
          "F4");
}

TEST_CASE("verify tells sound images from damaged ones, other files, and names that lie") {
  const Files files;
  const auto image = files.image("a.safetensors", small_state());
  REQUIRE(run({"verify", image}).code == 0);

  auto bytes = image_of(small_state(), "gpt2", 2, {3, 85}).memory;
  const auto index = SafetensorsIndex::parse(bytes.bytes());
  bytes.data()[index.data_begin() + index.find("model.bias")->begin] ^= std::byte{1};
  write_file(files.path("b.safetensors"), bytes.bytes());
  const auto damaged = run({"verify", files.path("b.safetensors")});
  INFO(damaged.out);
  REQUIRE(damaged.code == 1);
  REQUIRE(contains(damaged.out, "DAMAGED"));
  REQUIRE(contains(damaged.out, "model."));

  save_safetensors(real_file_system(), files.path("plain"), Dict{{"w", Tensor::scalar(1.0F)}});
  REQUIRE(run({"verify", files.path("plain")}).code == 1);
  REQUIRE(contains(run({"verify", files.path("plain")}).out, "no digests"));

  const auto lies = "gpt2.g000003.s000000000080.r00002of00004.own.safetensors";
  REQUIRE(parse_file_name(lies).has_value());
  files.image(lies, small_state());
  REQUIRE(run({"verify", files.path(lies)}).code == 1);
  REQUIRE(contains(run({"verify", files.path(lies)}).out, "another image"));

  // A directory is what is published in it.
  const auto all = run({"verify", files.temp.path().string(), "--json"});
  REQUIRE(all.code == 1);
  REQUIRE(all.json().at("images").size() == 1);
}

TEST_CASE("verify of nothing is not ok") {
  const Files files;
  const auto dir = files.temp.path().string();
  for (const auto& arguments : {std::vector<std::string>{"verify", dir}, {"verify", "--in", dir}}) {
    const auto answer = run(arguments);
    INFO(answer.out);
    REQUIRE(answer.code == 1);
    REQUIRE(contains(answer.out, "nothing was verified: no image was found in " + dir));
    REQUIRE_FALSE(contains(answer.out, "ok"));
  }
  const auto json = run({"verify", dir, "--json"});
  REQUIRE(json.code == 1);
  REQUIRE(json.json().at("good") == false);
}

TEST_CASE("diff of an image and its own export is empty, and compares what is no tensor") {
  const Files files;
  auto state = small_state();
  state.set("c", Tensor::full<std::complex<double>>({2}, {1, -2}));
  state.set("nan", std::numeric_limits<double>::quiet_NaN());
  state.set("bytes", Bytes(5, std::byte{0xfe}));
  state.set("text", "\xff\xfe");
  state.set("large", std::int64_t{1} << 60U);
  for (const bool dotted : {false, true}) {
    if (dotted) {  // names that are escaped
      state.set("a.b", Tensor::scalar(1));
      state.set("a", Dict{{"b", 2}});
    }
    const auto a = files.image("a", state);
    REQUIRE(run({"export", a, "-o", files.path("out"), "--force"}).code == 0);
    for (const auto& arguments : {std::vector{a, files.path("out")}, {files.path("out"), a}}) {
      const auto same = run({"diff", arguments[0], arguments[1]});
      INFO(same.out);
      REQUIRE(same.code == 0);
    }
    auto other = state;
    other.set("lr", 0.2);
    other.erase("large");
    other.set("more", "new");
    const auto answer = run({"diff", files.image("b", other), files.path("out")});
    INFO(answer.out);
    REQUIRE(answer.code == 1);
    REQUIRE(contains(answer.out, "lr: value: 0.2 against 0.1"));
    REQUIRE(contains(answer.out, "large: keys: missing against 1152921504606846976"));
    REQUIRE(contains(answer.out, "more: keys: \"new\" against missing"));
    REQUIRE(contains(answer.out, "3 differences"));
    REQUIRE(run({"diff", files.path("b"), files.path("out"), "--structure", "--json"})
                .json()
                .at("differences") == 2);
    state.set("lr", 0.1);
    state.erase("more");
    state.set("large", std::int64_t{1} << 60U);
  }
  const auto tensor = files.image("t", Tensor::arange<float>(3));
  REQUIRE(run({"export", tensor, "-o", files.path("t.out")}).code == 0);
  REQUIRE(run({"diff", tensor, files.path("t.out")}).code == 0);
}

TEST_CASE("export keeps what another program's file says of itself") {
  const Files files;
  save_safetensors(real_file_system(), files.path("f"), Dict{{"w", Tensor::scalar(1.0F)}},
                   {{"format", "np"}, {"author", "somebody"}, {"step", "7"}});
  REQUIRE(run({"export", files.path("f"), "-o", files.path("g")}).code == 0);
  const auto metadata = run({"inspect", files.path("g"), "--json"}).json().at("metadata");
  REQUIRE(metadata == nlohmann::json{{"format", "np"}, {"author", "somebody"}, {"step", "7"}});
}

TEST_CASE("diff prints the first differences by path and says how values differ") {
  const Files files;
  const auto a = files.image("a", small_state());
  const auto b = files.image("b", small_state(), {3, 90});
  const auto same = run({"diff", a, b});
  REQUIRE(same.code == 0);
  REQUIRE(contains(same.out, "identical, every bit"));

  auto other = small_state(0.75F);
  other.set("lr", 0.2);
  other.erase("scaled");
  const auto c = files.image("c", other);
  const auto answer = run({"diff", a, c});
  INFO(answer.out);
  REQUIRE(answer.code == 1);
  REQUIRE(contains(
      answer.out,
      "model.bias: value: [0] 0.5 against [0] 0.75; 2 of 2 elements differ, by up to 0.25"));
  REQUIRE(contains(answer.out, "lr: value: double 0.1 against double 0.2"));
  REQUIRE(contains(answer.out, "scaled: keys: U8[4] against missing"));
  REQUIRE(contains(answer.out, "3 differences"));
  REQUIRE(contains(run({"diff", a, c, "--max", "1"}).out, "the first 1 of 3 differences"));
  const auto json = run({"diff", a, c, "--json"});
  REQUIRE(json.code == 1);
  REQUIRE(json.json().at("differences") == 3);
  REQUIRE(json.json().at("identical") == false);
  REQUIRE(run({"diff", a, c, "--structure", "--json"}).json().at("differences") == 1);

  // Equal values that share on one side only.
  auto untied = small_state();
  Dict model = untied.at("model").as<Dict>();
  model.set("head", Tensor::arange<float>(6).view({2, 3}).transpose(0, 1));
  const auto d = run({"diff", a, files.image("d", untied)});
  INFO(d.out);
  REQUIRE(d.code == 1);
  REQUIRE(contains(d.out, "model.head: sharing:"));
}

TEST_CASE("export writes every path as a tensor of its own, and diff finds it equal") {
  const Files files;
  auto state = small_state();
  state.set("c", Tensor::full<std::complex<double>>({2}, {1, -2}));
  const auto a = files.image("a", state);
  const auto out = files.path("out.safetensors");
  const auto answer = run({"export", a, "-o", out});
  INFO(answer.out << answer.err);
  REQUIRE(answer.code == 0);
  const auto loaded = load_state_file(real_file_system(), out).as<Dict>();
  REQUIRE(loaded.size() == 6);
  REQUIRE(loaded.at("model.head").as<Tensor>().is_contiguous());
  REQUIRE(
      same_bits(loaded.at("model.head").as<Tensor>(), state.at("model").at("head").as<Tensor>()));
  REQUIRE_FALSE(loaded.at("model.head").as<Tensor>().storage() ==
                loaded.at("model.w").as<Tensor>().storage());
  REQUIRE(loaded.at("c").as<Tensor>().shape() == Shape{2, 2});
  const auto same = run({"diff", a, out});
  INFO(same.out);
  REQUIRE(same.code == 0);
  const auto shown = run({"inspect", out, "--json"}).json();
  const auto values =
      nlohmann::json::parse(shown.at("metadata").at("meshstage.values").get<std::string>());
  REQUIRE(values.at("lr") == 0.1);
  REQUIRE(values.at("second.1") == "two");

  REQUIRE(run({"export", a, "-o", out}).code == 2);  // it exists
  REQUIRE(run({"export", a, "-o", out, "--force", "--path", "model"}).code == 0);
  const auto model = load_state_file(real_file_system(), out).as<Dict>();
  REQUIRE(model.size() == 3);
  REQUIRE(model.contains("bias"));
}

TEST_CASE("diff sees a scalar that only one of an image and an export has") {
  const Files files;
  const Dict bare{{"w", Tensor::scalar(1.0F)}};
  const Dict rated{{"w", Tensor::scalar(1.0F)}, {"lr", 0.1}};
  const auto without = files.image("without", bare), with = files.image("with", rated);
  for (const auto* image : {&without, &with}) {
    const auto out = files.path("out");
    REQUIRE(run({"export", *image, "-o", out, "--force"}).code == 0);
    CHECK(run({"diff", *image, out}).code == 0);
    const auto answer = run({"diff", image == &with ? without : with, out});
    CHECK(answer.code == 1);
    CHECK(contains(answer.out, "lr"));
  }
}

TEST_CASE("export escapes names that would not be unique") {
  const Files files;
  const Dict state{{"a.b", Tensor::scalar(1.0F)}, {"a", Dict{{"b", Tensor::scalar(2.0F)}}}};
  const auto out = files.path("out");
  const auto answer = run({"export", files.image("i", state), "-o", out});
  REQUIRE(answer.code == 0);
  REQUIRE(contains(answer.out, "escaped"));
  const auto loaded = load_state_file(real_file_system(), out).as<Dict>();
  REQUIRE(loaded.at("a%2Eb").as<Tensor>().item<float>() == 1.0F);
  REQUIRE(loaded.at("a.b").as<Tensor>().item<float>() == 2.0F);
}

TEST_CASE("a view larger than memory's share is exported in parts, a file too large refused") {
  const Files files;
  const auto row = Tensor::arange<std::int32_t>(1000);
  const Dict state{{"wide", row.expand({20000, 1000})},
                   {"tall", row.view({1000, 1}).expand({1000, 3})}};
  const auto a = files.image("a", state);
  const auto out = files.path("out");
  REQUIRE(run({"export", a, "-o", out}).code == 0);
  const auto loaded = load_state_file(real_file_system(), out).as<Dict>();
  REQUIRE(same_bits(loaded.at("wide").as<Tensor>(), state.at("wide").as<Tensor>()));
  REQUIRE(same_bits(loaded.at("tall").as<Tensor>(), state.at("tall").as<Tensor>()));

  const Dict huge{{"huge", Tensor::scalar(1.0F).expand({1 << 30, 1 << 29})}};
  const auto refused = run({"export", files.image("h", huge), "-o", files.path("never")});
  INFO(refused.err);
  REQUIRE(refused.code == 1);
  REQUIRE(contains(refused.err, "needs 2305843009213694"));
  REQUIRE_FALSE(std::filesystem::exists(files.path("never")));
}

TEST_CASE("a tree whose paths have no end is refused, listed once it is not") {
  const Files files;
  Value value = Tensor::scalar(1.0F);
  for (int i = 0; i < 40; ++i) value = List{value, value};
  const auto a = files.image("a", Dict{{"v", value}});
  REQUIRE(run({"inspect", a}).code == 0);
  REQUIRE(run({"diff", a, a}).code == 0);
  const auto refused = run({"export", a, "-o", files.path("out")});
  REQUIRE(refused.code == 1);
  REQUIRE(contains(refused.err, "too many places"));
}

TEST_CASE("wrong arguments of the snapshot commands are one clear line and exit 2") {
  const Files files;
  const auto dir = files.temp.path().string();
  const auto a = files.image("a", small_state());
  const std::vector<std::pair<std::vector<std::string>, std::string>> table{
      {{"inspect"}, "for example: meshstage inspect model.safetensors"},
      {{"inspect", files.path("none")}, "there is no file"},
      {{"inspect", dir}, "is a directory"},
      {{"inspect", "/dev/null"}, "not a regular file"},
      {{"inspect", "job/0@5", "--in", dir}, "meshstage ls lists what there is"},
      {{"inspect", "job/0", "--in", files.path("none")}, "there is no directory"},
      {{"inspect", a, "--depth", "x"}, "--depth"},
      {{"diff", a}, "for example: meshstage diff"},
      {{"diff", a, a, "--max", "0"}, "--max"},
      {{"export", a}, "--output is required"},
      {{"export", a, "-o", dir}, "is a directory"},
      {{"export", a, "-o", files.path("no/file")}, "there is no directory"},
      {{"verify", files.path("none")}, "there is no file"},
      {{"ls", files.path("none")}, "there is no directory"},
      {{"doctor", "--state", "much"}, "valid: 1500000000, 1.5GB"},
      {{"doctor", "--ranks", "0"}, "--ranks"},
      {{"info", "--what"}, "--what"},
      {{"frobnicate"}, "there is no command \"frobnicate\"; there are ls, inspect, "},
      {{"diff", a, a, "--max", "1", "third"}, "third"},
  };
  for (const auto& [arguments, part] : table) {
    const auto answer = run(arguments);
    INFO(arguments[0] << " " << (arguments.size() > 1 ? arguments[1] : "") << ": " << answer.err);
    REQUIRE(answer.code == 2);
    REQUIRE(answer.out.empty());
    REQUIRE(contains(answer.err, part));
    REQUIRE(std::count(answer.err.begin(), answer.err.end(), '\n') == 1);
  }
}

TEST_CASE("every snapshot command has a help text with an example") {
  for (const char* command :
       {"ls", "inspect", "verify", "diff", "export", "clean", "info", "doctor"}) {
    const auto answer = run({command, "--help"});
    INFO(command);
    REQUIRE(answer.code == 0);
    REQUIRE(contains(answer.out, std::string("Example:\n  meshstage ") + command));
  }
}
