// Any safetensors file as a state dict, and a flat dict as a plain file.
#include <meshstage/core/files/state_file.hpp>

#include <cstring>

#include <meshstage/core/files/publish.hpp>
#include <meshstage/core/image/safetensors_dict.hpp>
#include <meshstage/core/os/faulty_file_system.hpp>
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;

namespace {

std::string file_text(const std::string& json, const std::string& data) {
  std::string text;
  for (unsigned i = 0; i < 8; ++i) text += static_cast<char>((json.size() >> (8 * i)) & 0xFFU);
  return text + json + data;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

bool is_aligned(const Tensor& t) {
  return reinterpret_cast<std::uintptr_t>(t.first_byte()) %
             std::min<std::size_t>(size_of(t.dtype()), 8) ==
         0;
}

}  // namespace

TEST_CASE("a plain file holds every dtype, any strides, aligned, and comes back equal") {
  MemoryFileSystem fs;
  Dict tensors;
  for (std::size_t i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    const auto t = Tensor::empty({3, 2}, dtype);
    for (std::size_t k = 0; k < t.nbytes(); ++k) {
      t.first_byte()[k] = dtype == DType::kBool ? std::byte(k % 2) : std::byte(k * 7 + i);
    }
    tensors.set(std::string(to_string(dtype)), t.transpose(0, 1));
  }
  tensors.set("a.b", Tensor::arange<std::int16_t>(10).narrow(0, 3, 5));
  tensors.set("none", Tensor::empty({0, 3}, DType::kF64));
  tensors.set("scalar", Tensor::scalar(1.5));
  save_safetensors(fs, "/f", tensors, {{"k", "v"}});
  const auto loaded = load_state_file(fs, "/f").as<Dict>();
  REQUIRE(loaded.size() == tensors.size());
  for (const auto& [key, value] : tensors) {
    INFO(key.string());
    const auto there = loaded.at(key).as<Tensor>();
    REQUIRE(is_aligned(there));
    if (key.string() == "C128") {
      REQUIRE(there.shape() == Shape{2, 3, 2});
      const auto here = value.as<Tensor>().contiguous();
      REQUIRE(std::memcmp(there.first_byte(), here.first_byte(), here.nbytes()) == 0);
    } else {
      REQUIRE(same_bits(there, value.as<Tensor>()));
    }
  }
  REQUIRE_THROWS_AS(loaded.at("a.b").as<Tensor>().data<std::int16_t>(), InvalidState);  // read-only
}

TEST_CASE("an image loads as its tree") {
  MemoryFileSystem fs;
  const auto w = Tensor::arange<float>(6).view({2, 3});
  const Value state = Dict{{"w", w}, {"head", w.transpose(0, 1)}, {"n", 3}};
  const auto image = test::make_image(state);
  publish_atomically(fs, "/i", std::span<const std::byte>(image.bytes()));
  REQUIRE_FALSE(compare(load_state_file(fs, "/i"), state).has_value());
}

TEST_CASE("dtypes without an element type are carried as their bytes") {
  const auto text = file_text(
      R"({"q":{"dtype":"F4","shape":[2,2],"data_offsets":[0,2]},"e":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[2,3]},)"
      R"("f":{"dtype":"F8_E4M3FNUZ","shape":[2],"data_offsets":[3,5]},"g":{"dtype":"F8_E5M2FNUZ","shape":[1,1],"data_offsets":[5,6]},)"
      R"("h":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[6,9]},"i":{"dtype":"F6_E3M2","shape":[2,2],"data_offsets":[9,12]}})",
      "abcdefghijkl");
  const auto dict = decode_safetensors(bytes_of(text), nullptr);
  const auto& q = dict.at("q").value();
  REQUIRE(q.as<Tensor>().dtype() == DType::kU8);
  REQUIRE(q.as<Tensor>().shape() == Shape{2});
  REQUIRE(q.attributes()->at(kSafetensorsDType).as<std::string>() == "F4");
  MemoryFileSystem fs;
  save_safetensors(fs, "/f", dict);
  const auto file = fs.open("/f", OpenMode::kRead);
  std::vector<std::byte> written(file->stat().size);
  REQUIRE(file->read_at(written, 0) == written.size());
  const auto index = SafetensorsIndex::parse(written);
  REQUIRE(index.find("q")->dtype == "F4");
  REQUIRE(index.find("q")->shape == std::vector<std::uint64_t>{2, 2});
  REQUIRE(index.find("e")->dtype == "F8_E8M0");
  REQUIRE(index.find("f")->dtype == "F8_E4M3FNUZ");
  REQUIRE(index.find("g")->dtype == "F8_E5M2FNUZ");
  REQUIRE(index.find("h")->dtype == "F6_E2M3");
  REQUIRE(index.find("i")->shape == std::vector<std::uint64_t>{2, 2});
  REQUIRE_FALSE(compare(dict, load_state_file(fs, "/f")).has_value());
}

TEST_CASE("a checkpoint in several files loads as one state dict by its index") {
  MemoryFileSystem fs;
  fs.make_directories("/m");
  const Dict first{{"a.w", Tensor::arange<float>(6)}, {"a.b", Tensor::scalar(1)}};
  const Dict second{{"b.w", Tensor::arange<std::int16_t>(5)}};
  save_safetensors(fs, "/m/model-1.safetensors", first, {{"format", "pt"}});
  save_safetensors(fs, "/m/model-2.safetensors", second);
  const auto index = [&](const std::string& text) {
    publish_atomically(fs, "/m/i.json", bytes_of(text));
    return load_state_file(fs, "/m/i.json");
  };
  const auto map = [](const std::string& a, const std::string& b) {
    return R"({"metadata":{"total_size":38},"weight_map":{"a.w":")" + a + R"(","a.b":")" + a +
           R"(","b.w":")" + b + R"("}})";
  };
  const auto good = map("model-1.safetensors", "model-2.safetensors");
  const auto loaded = index(" \n" + good).as<Dict>();
  REQUIRE(loaded.size() == 3);
  REQUIRE(same_bits(loaded.at("a.w").as<Tensor>(), first.at("a.w").as<Tensor>()));
  REQUIRE(same_bits(loaded.at("b.w").as<Tensor>(), second.at("b.w").as<Tensor>()));

  // The index is hostile input.
  const auto refused = [&](const std::string& text, const char* says) {
    INFO(text);
    REQUIRE_THROWS_AS(index(text), CorruptData);
    REQUIRE_THROWS_WITH(index(text), Catch::Matchers::Contains(says));
  };
  for (const std::string name : {"/etc/passwd", "../m/model-2.safetensors", "", ".", "..", "x/y"})
    refused(map("model-1.safetensors", name), "no name of a file beside the index");
  refused(map("model-1.safetensors", "a\\u0000b"), "beside the index");
  refused(map("model-2.safetensors", "model-1.safetensors"), "is not in");
  refused(R"({"weight_map":{"a.w":"model-1.safetensors"}})", "\"a.b\" is not listed for");
  refused(R"({"weight_map":{"a.w":"model-1.safetensors","a.w":"model-2.safetensors"}})", "twice");
  refused(R"({"weight_map":{},"weight_map":{}})", "twice");
  refused(R"({"weight_map":{"a.w":1}})", "in no file");
  refused(R"({"weight_map":[]})", "has no \"weight_map\"");
  refused(R"({"a":1)" + std::string(9, ' '), "is no JSON");
  refused(good + std::string("\0{}", 3), "a byte of 0");
  refused(R"({"x":)" + std::string(100'000, '['), "nested too deeply");
  REQUIRE_THROWS_AS(index(map("model-1.safetensors", "model-3.safetensors")), NotFound);
  // A shard is a safetensors file, not another index.
  refused(map("model-1.safetensors", "i.json"), "it looks like JSON");
}

TEST_CASE("tensors that a file leaves unaligned are copied to where they can be read") {
  const auto text = file_text(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F64","shape":[1],"data_offsets":[1,9]}})",
      std::string("x\0\0\0\0\0\0\xf0\x3f", 9));
  for (std::size_t shift = 0; shift < 8; ++shift) {
    std::vector<std::byte> memory(text.size() + 16);
    std::memcpy(memory.data() + shift, text.data(), text.size());
    const auto dict = decode_safetensors({memory.data() + shift, text.size()}, nullptr);
    REQUIRE(is_aligned(dict.at("b").as<Tensor>()));
    REQUIRE(dict.at("b").as<Tensor>().item<double>() == 1.0);
  }
}

TEST_CASE("what a plain file cannot hold is refused with its name, and nothing is written") {
  MemoryFileSystem fs;
  const auto t = Tensor::scalar(1.0F);
  const std::vector<std::pair<Dict, std::string>> table{
      {Dict{{"n", 3}}, "\"n\" is int 3"},
      {Dict{{"d", Dict{}}}, "\"d\" is dict"},
      {Dict{{7, t}}, "the key 7"},
      {Dict{{"__metadata__", t}}, "__metadata__"},
      {Dict{{"a\xff", t}}, "not UTF-8"},
      {Dict{{"q", Value(Tensor::zeros({2}, DType::kU8),
                        Dict{{kSafetensorsDType, "F4"}, {kSafetensorsShape, List{5}}})}},
       "20 bits"},
      {Dict{{"q", Value(Tensor::zeros({2}, DType::kU8),
                        Dict{{kSafetensorsDType, "F5"}, {kSafetensorsShape, List{4}}})}},
       "no dtype \"F5\""},
  };
  for (const auto& [dict, says] : table) {
    INFO(says);
    REQUIRE_THROWS_WITH(save_safetensors(fs, "/f", dict), Catch::Matchers::Contains(says));
    REQUIRE_FALSE(fs.stat("/f").has_value());
  }
  REQUIRE_THROWS_AS(save_safetensors(fs, "/f", Dict{{"t", t}}, {{"k", "\xff"}}), InvalidArgument);
  // What load_state_file() would refuse, or take for something else.
  REQUIRE_THROWS_WITH(save_safetensors(fs, "/f", Dict{{"t", t}}, {{"k", "1"}, {"k", "2"}}),
                      Catch::Matchers::Contains("\"k\" comes twice"));
  REQUIRE_THROWS_WITH(save_safetensors(fs, "/f", Dict{{"t", t}}, {{"meshstage", "1"}}),
                      Catch::Matchers::Contains("\"meshstage\""));
  REQUIRE_THROWS_WITH(
      save_safetensors(fs, "/f", Dict{{"deep", Tensor::zeros(Shape(1025, 1), DType::kF32)}}),
      Catch::Matchers::Contains("\"deep\" has 1025 dims"));
  REQUIRE_FALSE(fs.stat("/f").has_value());
}

TEST_CASE("what a plain file holds is read back: many dims, large sizes beside a 0, odd metadata") {
  MemoryFileSystem fs;
  const Dict tensors{{"many", Tensor::arange<float>(6).view([] {
                        Shape shape(1024, 1);
                        shape[500] = 6;
                        return shape;
                      }())},
                     {"complex", Tensor::zeros(Shape(1024, 1), DType::kC128)},
                     {"empty", Tensor::empty({std::int64_t{1} << 62, 0, 1}, DType::kF64)},
                     {"", Tensor::scalar(1)},
                     {std::string("\0\n\"", 3), Tensor::scalar(2)}};
  save_safetensors(fs, "/f", tensors, {{"", std::string("\0x", 2)}, {"format", "pt"}});
  const auto loaded = load_state_file(fs, "/f").as<Dict>();
  REQUIRE(loaded.size() == tensors.size());
  REQUIRE(same_bits(loaded.at("many").as<Tensor>(), tensors.at("many").as<Tensor>()));
  REQUIRE(loaded.at("complex").as<Tensor>().dim() == 1025);
  REQUIRE(loaded.at("empty").as<Tensor>().shape() == tensors.at("empty").as<Tensor>().shape());
  REQUIRE(loaded.at(std::string("\0\n\"", 3)).as<Tensor>().item<int>() == 2);
}

TEST_CASE("a file that finds no room is refused before anything is written") {
  MemoryFileSystem fs({.capacity = 1000});
  const Dict huge{{"t", Tensor::scalar(1.0F).expand({1 << 20, 1 << 20})}};
  REQUIRE_THROWS_WITH(save_safetensors(fs, "/f", huge), Catch::Matchers::Contains("4398046511") &&
                                                            Catch::Matchers::Contains("has 1000"));
  REQUIRE(fs.list("/").empty());
}

TEST_CASE("a view that fans out is written in parts, in order") {
  MemoryFileSystem fs;
  const auto row = Tensor::arange<std::int32_t>(3000);
  const Dict tensors{{"rows", row.expand({9000, 3000})},
                     {"columns", row.view({3000, 1}).expand({3000, 6000})}};
  save_safetensors(fs, "/f", tensors);
  const auto loaded = load_state_file(fs, "/f").as<Dict>();
  REQUIRE(same_bits(loaded.at("rows").as<Tensor>(), tensors.at("rows").as<Tensor>()));
  REQUIRE(same_bits(loaded.at("columns").as<Tensor>(), tensors.at("columns").as<Tensor>()));
}

TEST_CASE("a writer that fails, however it does, leaves the old file and no other") {
  MemoryFileSystem fs;
  save_safetensors(fs, "/f", Dict{{"t", Tensor::scalar(1.0F)}});
  struct Oops {};
  REQUIRE_THROWS_AS(publish_atomically(fs, "/f", std::function<void(File&)>([](File& file) {
                                         file.truncate(10);
                                         throw Oops{};
                                       })),
                    Oops);
  REQUIRE(fs.list("/") == std::vector<std::string>{"f"});
  REQUIRE(load_state_file(fs, "/f").at("t").as<Tensor>().item<float>() == 1.0F);

  FaultyFileSystem faulty(fs);
  for (std::uint64_t n = 1;; ++n) {
    faulty.fail_any(n, EIO);
    try {
      save_safetensors(faulty, "/f", Dict{{"t", Tensor::scalar(2.0F)}});
    } catch (const IoError&) {
    }
    if (!faulty.fired()) break;
    faulty.clear_faults();
    const auto value = load_state_file(fs, "/f").at("t").as<Tensor>().item<float>();
    INFO("operation " << n);
    REQUIRE((value == 1.0F || value == 2.0F));
    REQUIRE(n < 100);
  }
  REQUIRE(fs.list("/").size() <= 2);  // the temporary file, where removing it was what failed
}
