#include "tools/snapshot/text.hpp"

#include <sstream>

#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"
#include "tools/snapshot/places.hpp"

using namespace meshstage;
using namespace meshstage::tools;

TEST_CASE("sizes are printed with three digits and their unit") {
  REQUIRE(size_text(0) == "0 B");
  REQUIRE(size_text(1023) == "1023 B");
  REQUIRE(size_text(1024) == "1.00 KiB");
  REQUIRE(size_text(1536 * 1024) == "1.50 MiB");
  REQUIRE(size_text((std::uint64_t{1} << 20U) - 1) == "1.00 MiB");
  REQUIRE(size_text(1490944000) == "1.39 GiB");
  REQUIRE(size_text(UINT64_MAX) == "16.0 EiB");
}

TEST_CASE("sizes are read as people write them, and refused with the valid form") {
  REQUIRE(parse_size("1500000000") == 1500000000);
  REQUIRE(parse_size("1.5GB") == 1500000000);
  REQUIRE(parse_size("1.5 GiB") == 1610612736);
  REQUIRE(parse_size("64m") == 64U << 20U);
  REQUIRE(parse_size("0") == 0);
  for (const char* wrong :
       {"", "x", "-1", "1.5Q", "1e3", "1GBB", "nan", "inf", "16EiB", "99999P"}) {
    INFO(wrong);
    REQUIRE_THROWS_WITH(parse_size(wrong), Catch::Matchers::Contains("valid: 1500000000"));
  }
}

TEST_CASE("what comes from a file is printed without control characters") {
  REQUIRE(printable("caf\xc3\xa9 \xe4\xb8\xad") == "caf\xc3\xa9 \xe4\xb8\xad");
  REQUIRE(printable("a\x1b[31m\nb\x7f") == "a?[31m?b?");
  REQUIRE(printable("\xc2\x9b[2J") == "?[2J");  // a terminal's own control character
  REQUIRE(printable("\xe2\x80\xae"
                    "abc") == "?abc");  // turns the line around
  REQUIRE(printable("\xff\xc0\xaf\xed\xa0\x80") == "??????");
  REQUIRE(printable("abcdef", 3) == "abc...");
}

TEST_CASE("columns are as wide as their widest cell") {
  Columns columns({"NAME", "SIZE"}, {Columns::Align::kLeft, Columns::Align::kRight});
  columns.add({"a", "1"});
  columns.add({"caf\xc3\xa9s", "1000"});
  std::ostringstream out;
  columns.print(out);
  REQUIRE(out.str() == "NAME   SIZE\na         1\ncaf\xc3\xa9s  1000\n");
}

TEST_CASE("an image's name is parsed to the letter") {
  const auto name = parse_image_name("gpt-2.b/12@3.85:0");
  REQUIRE(name.has_value());
  REQUIRE(name->job == "gpt-2.b");
  REQUIRE(name->rank == 12);
  REQUIRE(name->generation == 3U);
  REQUIRE(name->step == 85U);
  REQUIRE(name->holder == 0);
  REQUIRE(parse_image_name("j/0@7")->step == 7U);
  REQUIRE_FALSE(parse_image_name("j/0@7")->generation.has_value());
  REQUIRE_FALSE(parse_image_name("j/0")->step.has_value());
  for (const char* wrong : {"", "j", "j/", "/0", "j/x", "j/-1", "j/0@", "j/0@x", "j/0@1.",
                            "j/0:", "j/0:-1", "j/0@1@2", "j j/0", "./0", "../0", "j/99999999999"}) {
    INFO(wrong);
    REQUIRE_FALSE(parse_image_name(wrong).has_value());
  }
  REQUIRE(image_name({"j", 2, 4, {3, 85}, {}}, 2) == "j/2@3.85");
  REQUIRE(image_name({"j", 2, 4, {3, 85}, {}}, 0) == "j/2@3.85:0");
}
