#include <map>

#include <meshstage/core/tree/path.hpp>

#include "tests/support/catch.hpp"

using namespace meshstage;

TEST_CASE("plain keys read as they are") {
  CHECK(Path({"model", "h", 0, "weight"}).text() == "model.h.0.weight");
  CHECK(Path().shown() == "(root)");
  CHECK(Path({"\xC3\xA9t\xC3\xA9"}).text() == "\xC3\xA9t\xC3\xA9");
}

TEST_CASE("every part of a path leads back to its key, and no two keys read alike") {
  const std::vector<Key> keys{"",
                              "a.b",
                              "a",
                              "%",
                              "%2E",
                              "0",
                              0,
                              -1,
                              "-1",
                              "+1",
                              "-",
                              "1e3",
                              "007",
                              7,
                              "\xFF\xFE",
                              "\n",
                              " ",
                              "%_",
                              "%@",
                              "\x7F",
                              "\xC3",
                              "a\xC3",
                              INT64_MIN,
                              INT64_MAX,
                              "9223372036854775808",
                              "__metadata__",
                              "__meshstage__.pad.0",
                              "__meshstage__",
                              "\xED\xA0\x80",
                              "\xF4\x90\x80\x80",
                              std::string_view("a\0b", 3),
                              "\"\\"};
  std::map<std::string, std::size_t> seen;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto text = Path::escape(keys[i]);
    INFO(text);
    CHECK(Path::unescape(text) == keys[i]);
    CHECK(text.find('.') == std::string::npos);
    CHECK_FALSE(Path::is_attributes(text));
    CHECK_FALSE(text.starts_with("__meshstage__"));
    CHECK(text != "__metadata__");
    CHECK(seen.emplace(text, i).second);
  }
}

TEST_CASE("text that no key reads as is refused") {
  for (const auto* text : {"", "%", "%2", "%2e", "%GG", "99999999999999999999"}) {
    INFO(text);
    CHECK_THROWS_AS(Path::unescape(text), InvalidArgument);
  }
}

TEST_CASE("a path grows and shrinks by parts") {
  Path p;
  p.push("a.b");
  p.push(3);
  p.push_attributes();
  CHECK(p.text() == "a%2Eb.3.%@");
  CHECK(Path::split(p.text()) == std::vector<std::string>{"a%2Eb", "3", "%@"});
  p.pop();
  p.pop();
  CHECK(p.text() == "a%2Eb");
  CHECK(p.depth() == 1);
  CHECK(Path::split("").empty());
}
