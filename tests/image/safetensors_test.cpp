#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/safetensors.hpp>

#include <cstring>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"

using meshstage::CorruptData;
using meshstage::SafetensorsIndex;

namespace {

std::vector<std::byte> bytes_of(const std::string& text) {
  std::vector<std::byte> out(text.size());
  std::memcpy(out.data(), text.data(), text.size());
  return out;
}

/// A file of this JSON and `data` bytes after it.
std::vector<std::byte> file_of(const std::string& json, std::size_t data) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>((json.size() >> (8 * i)) & 0xff);
  return bytes_of(text + json + std::string(data, 'x'));
}

std::string refusal(const std::vector<std::byte>& file) {
  try {
    (void)SafetensorsIndex::parse(file);
  } catch (const CorruptData& e) {
    return e.what();
  }
  return "accepted";
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

}  // namespace

TEST_CASE("a sound header is read: entries by offset, metadata in order, padding accepted") {
  const auto file = file_of("{\"__metadata__\":{\"b\":\"2\",\"a\":\"1\"}," +
                                tensor("second", "BF16", "[2,3]", "[8,20]") + "," +
                                tensor("first", "F64", "[]", "[0,8]") + "," +
                                tensor("empty", "I8", "[0,7]", "[20,20]") + "}   ",
                            20);
  const auto index = SafetensorsIndex::parse(file);
  REQUIRE(index.entries().size() == 3);
  REQUIRE(index.entries()[0].name == "first");
  REQUIRE(index.entries()[1].name == "second");
  REQUIRE(index.entries()[1].shape == std::vector<std::uint64_t>{2, 3});
  REQUIRE(index.entries()[2].name == "empty");
  REQUIRE(index.find("second") == &index.entries()[1]);
  REQUIRE(index.find("third") == nullptr);
  REQUIRE(index.metadata()[0].first == "b");
  REQUIRE(index.find_metadata("a") == "1");
  REQUIRE_FALSE(index.find_metadata("c").has_value());
  REQUIRE(index.data_begin() == file.size() - 20);
  REQUIRE(index.data_bytes() == 20);
  const auto front = std::span(file).first(index.data_begin());
  REQUIRE(SafetensorsIndex::parse_front(front, file.size()).entries().size() == 3);
}

TEST_CASE("what Python's safetensors accepts besides is accepted too") {
  REQUIRE(refusal(file_of("{}", 0)) == "accepted");
  REQUIRE(refusal(file_of("{\"__metadata__\":null}", 0)) == "accepted");
  REQUIRE(refusal(file_of("{\"a\":{\"x\":{\"y\":[1,null,true]},\"dtype\":\"F4\",\"shape\":[4],"
                          "\"data_offsets\":[0,2],\"z\":-1.5}}",
                          2)) == "accepted");
  REQUIRE(
      SafetensorsIndex::parse(file_of("{" + tensor("\\u00e9\\n", "U8", "[1]", "[0,1]") + "}", 1))
          .find("\xc3\xa9\n") != nullptr);
}

TEST_CASE("every prefix of a sound file is refused") {
  const auto file = file_of("{" + tensor("weight", "F32", "[2]", "[0,8]") + "}", 8);
  REQUIRE(refusal(file) == "accepted");
  for (std::size_t n = 0; n < file.size(); ++n) {
    const std::vector<std::byte> prefix(file.begin(),
                                        file.begin() + static_cast<std::ptrdiff_t>(n));
    REQUIRE(refusal(prefix).find("corrupt data: not a sound safetensors file: ") == 0);
  }
}

TEST_CASE("hostile headers are refused with one line that names tensor and offset") {
  struct Row {
    const char* what;
    std::string json;
    std::size_t data;
    std::vector<const char*> says;
  };
  const std::string deep_unknown = std::string(100000, '[');
  const std::vector<Row> rows{
      {"not JSON", "{\"a\"", 0, {"byte"}},
      {"not an object", "[1]", 0, {"byte 8"}},
      {"padded in front", " {}", 0, {"byte 8"}},
      {"two objects", "{}{}", 0, {"at byte 10"}},
      {"an overlap",
       "{" + tensor("a", "U8", "[4]", "[0,4]") + "," + tensor("b", "U8", "[4]", "[2,6]") + "}",
       6,
       {"\"b\"", "byte 2", "\"a\"", "ends at 4"}},
      {"two names on one range",
       "{" + tensor("a", "U8", "[4]", "[0,4]") + "," + tensor("b", "U8", "[4]", "[0,4]") + "}",
       4,
       {"\"b\"", "byte 0"}},
      {"an empty one inside another",
       "{" + tensor("a", "U8", "[4]", "[0,4]") + "," + tensor("b", "U8", "[0]", "[2,2]") + "}",
       4,
       {"\"b\"", "byte 2"}},
      {"a hole",
       "{" + tensor("a", "U8", "[4]", "[0,4]") + "," + tensor("b", "U8", "[4]", "[5,9]") + "}",
       9,
       {"\"b\"", "byte 5", "hole from 4"}},
      {"a hole in front",
       "{" + tensor("a", "U8", "[4]", "[1,5]") + "}",
       5,
       {"\"a\"", "hole from 0"}},
      {"trailing bytes",
       "{" + tensor("a", "U8", "[4]", "[0,4]") + "}",
       5,
       {"\"a\"", "has 5", "ends at 4"}},
      {"data without a tensor", "{}", 1, {"trailing"}},
      {"out of range",
       "{" + tensor("a", "U8", "[4]", "[0,4]") + "}",
       3,
       {"\"a\"", "[0, 4)", "end at 3"}},
      {"backwards",
       "{" + tensor("a", "U8", "[4]", "[4,0]") + "}",
       4,
       {"\"a\"", "[4, 0)", "before"}},
      {"wrapping to the right size",
       "{" + tensor("a", "F32", "[4611686018427387905]", "[0,4]") + "}",
       4,
       {"\"a\"", "64 bits"}},
      {"a wrapping product",
       "{" + tensor("a", "U8", "[4294967296,4294967296,16]", "[0,0]") + "}",
       0,
       {"\"a\"", "64 bits"}},
      {"a dimension over 64 bits",
       "{" + tensor("a", "U8", "[18446744073709551617]", "[0,1]") + "}",
       1,
       {"\"a\"", "18446744073709551617"}},
      {"an offset over 64 bits",
       "{" + tensor("a", "U8", "[1]", "[0,18446744073709551617]") + "}",
       1,
       {"\"a\"", "offset"}},
      {"a negative dimension", "{" + tensor("a", "U8", "[-1]", "[0,1]") + "}", 1, {"\"a\"", "-1"}},
      {"a negative offset", "{" + tensor("a", "U8", "[1]", "[-1,0]") + "}", 1, {"\"a\"", "-1"}},
      {"a fractional dimension",
       "{" + tensor("a", "U8", "[1.5]", "[0,1]") + "}",
       1,
       {"\"a\"", "1.5"}},
      {"an exponent", "{" + tensor("a", "U8", "[1e0]", "[0,1]") + "}", 1, {"\"a\"", "1e0"}},
      {"a string for a dimension",
       "{" + tensor("a", "U8", "[\"1\"]", "[0,1]") + "}",
       1,
       {"\"a\"", "dimension"}},
      {"three offsets", "{" + tensor("a", "U8", "[1]", "[0,1,1]") + "}", 1, {"\"a\"", "3 numbers"}},
      {"one offset", "{" + tensor("a", "U8", "[1]", "[0]") + "}", 1, {"\"a\"", "1 number"}},
      {"a wrong size", "{" + tensor("a", "F32", "[2]", "[0,4]") + "}", 4, {"\"a\"", "need 8"}},
      {"half a byte", "{" + tensor("a", "F4", "[1]", "[0,0]") + "}", 0, {"\"a\"", "whole bytes"}},
      {"an unknown dtype", "{" + tensor("a", "F33", "[1]", "[0,4]") + "}", 4, {"\"a\"", "\"F33\""}},
      {"a name twice",
       "{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("a", "U8", "[1]", "[1,2]") + "}",
       2,
       {"\"a\"", "twice", "at byte"}},
      {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, {"twice"}},
      {"a metadata key twice",
       "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}",
       0,
       {"\"k\"", "twice"}},
      {"a field twice",
       "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
       1,
       {"\"a\"", "\"dtype\" occurs twice"}},
      {"metadata that is no string",
       "{\"__metadata__\":{\"k\":1}}",
       0,
       {"a number where a metadata string"}},
      {"a tensor that is no object", "{\"a\":1}", 0, {"\"a\"", "a number where a tensor's object"}},
      {"a tensor that is null", "{\"a\":null}", 0, {"\"a\"", "null"}},
      {"no dtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, {"\"a\"", "no dtype"}},
      {"no shape", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, {"\"a\"", "no shape"}},
      {"no offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, {"\"a\"", "no data_offsets"}},
      {"a nested shape",
       "{" + tensor("a", "U8", "[[1]]", "[0,1]") + "}",
       1,
       {"\"a\"", "an array where a dimension"}},
      {"deep JSON", "{\"a\":{\"x\":" + deep_unknown + "}}", 0, {"\"a\"", "nested deeper"}},
      {"deep from the start", "{\"a\":" + deep_unknown + "}", 0, {"\"a\"", "an array where"}},
      {"invalid UTF-8 in a name",
       "{" + tensor("a\xff", "U8", "[1]", "[0,1]") + "}",
       1,
       {"at byte 11"}},
      {"an overlong UTF-8 form",
       "{" + tensor("\xc0\xaf", "U8", "[1]", "[0,1]") + "}",
       1,
       {"at byte 10"}},
      {"a lone surrogate", "{" + tensor("\\ud800", "U8", "[1]", "[0,1]") + "}", 1, {"at byte"}},
      {"a NUL in the text", std::string("{\0}", 3), 0, {"at byte 9"}},
      {"a NUL behind the text", std::string("{}\0", 3), 0, {"a byte of 0", "at byte 10"}},
      {"a NUL, and more behind it", std::string("{}\0 {\"a\":1}", 10), 0, {"at byte 10"}},
      {"1026 dimensions",
       "{" +
           tensor(
               "a", "U8",
               "[1" +
                   [] {
                     std::string s;
                     for (int i = 0; i < 1025; ++i) s += ",1";
                     return s;
                   }() +
                   "]",
               "[0,1]") +
           "}",
       1,
       {"\"a\"", "1025 dimensions"}},
  };
  for (const auto& row : rows) {
    const std::string message = refusal(file_of(row.json, row.data));
    INFO(row.what << ": " << message);
    REQUIRE(message.find("corrupt data: not a sound safetensors file: ") == 0);
    REQUIRE(message.find('\n') == std::string::npos);
    REQUIRE(message.size() < 500);
    REQUIRE(message.find("byte") != std::string::npos);  // where
    for (const char* part : row.says) {
      INFO("looked for: " << part);
      REQUIRE(message.find(part) != std::string::npos);
    }
  }
}

TEST_CASE("what is another kind of file is called by what it looks like") {
  const std::string filler(4000, 'x');
  for (const auto& [begin, what] : std::vector<std::pair<std::string, const char*>>{
           {"PK\x03\x04", "a zip archive, as torch.save() writes"},
           {"\x80\x02}q", "a pickle"},
           {"\x80\x04\x95", "a pickle"},
           {"<!DOCTYPE html>", "a web page"},
           {"\n <HTML><head>", "a web page"},
           {"version https://git-lfs.github.com/spec/v1\noid", "large-file storage"},
           {"{\"metadata\": {", "JSON"},
           {"GGUF\x03", "a GGUF file"},
           {"\x93NUMPY\x01", "a NumPy array"}}) {
    INFO(what);
    REQUIRE(refusal(bytes_of(begin + filler)).find(what) != std::string::npos);
  }
  for (const std::string begin : {"PK\x03\x04", "<html>", "{}"})  // shorter than a length, too
    REQUIRE(refusal(bytes_of(begin)).find("it looks like") != std::string::npos);
  REQUIRE(refusal(bytes_of(filler)).find("looks like") == std::string::npos);
  REQUIRE(refusal({}).find("truncated: 0 bytes") != std::string::npos);
  // A header whose length reads as one of these is read all the same.
  REQUIRE(refusal(file_of("{}" + std::string(0x8b1f - 2, ' '), 0)) == "accepted");
}

TEST_CASE("an overlong header length is refused before anything is read") {
  auto file = file_of("{}", 0);
  file[3] = std::byte{0xff};
  REQUIRE(refusal(file).find("overlong header") != std::string::npos);
  for (std::size_t i = 0; i < 8; ++i) file[i] = std::byte{0xff};  // 8 + N wraps
  REQUIRE(refusal(file).find("overlong header") != std::string::npos);
  REQUIRE_THROWS_AS(SafetensorsIndex::read_data_begin(file, ~std::uint64_t{0}, {~std::uint64_t{0}}),
                    CorruptData);
  auto within = file_of("{}", 0);
  within[0] = std::byte{9};
  REQUIRE(refusal(within).find("truncated: byte 0 says the header has 9 bytes") !=
          std::string::npos);
}

TEST_CASE("the error of a hostile name stays one short line and path() has it whole") {
  const std::string name(5000, 'n');
  try {
    (void)SafetensorsIndex::parse(
        file_of("{" + tensor("\\n" + name, "U8", "[2]", "[0,1]") + "}", 1));
    FAIL("accepted");
  } catch (const CorruptData& e) {
    REQUIRE(std::string(e.what()).size() < 400);
    REQUIRE(std::string(e.what()).find('\n') == std::string::npos);
    REQUIRE(e.path() == "\n" + name);
  }
}
