#include <fstream>
#include <string>
#include <string_view>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;

TEST_CASE("the worked example of the format's document is what the library writes") {
  const auto w = Tensor::arange<float>(6).view({2, 3});
  const auto image =
      test::make_image(Dict{{"w", w}, {"head", w.transpose(0, 1)}, {"step", 7}}, 4 << 20);
  std::ifstream document(MESHSTAGE_FORMAT_DOCUMENT);
  REQUIRE(document);
  constexpr std::string_view kHex = "0123456789abcdef";
  std::size_t rows = 0;
  for (std::string line; std::getline(document, line);) {
    // "    00001000: 0000 0000 0000 803f  ....": an offset of eight digits, bytes until two spaces.
    if (line.size() < 14 || line.substr(0, 4) != "    " || line[12] != ':' ||
        line.find_first_not_of(kHex, 4) != 12) {
      continue;
    }
    ++rows;
    std::size_t at = std::stoul(line.substr(4, 8), nullptr, 16);
    std::string hex = line.substr(14, line.find("  ", 14) - 14);
    std::erase(hex, ' ');
    INFO(line);
    CHECK(hex.size() >= 16);
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2, ++at) {
      REQUIRE(at < image.bytes().size());
      CHECK(std::to_integer<unsigned long>(image.bytes()[at]) ==
            std::stoul(hex.substr(i, 2), nullptr, 16));
    }
  }
  CHECK(rows == 17);
  CHECK(image.bytes().size() == 4520);
}
