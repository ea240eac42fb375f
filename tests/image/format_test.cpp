#include <fstream>
#include <regex>

#include "tests/support/catch.hpp"
#include "tests/support/states.hpp"

using namespace meshstage;

TEST_CASE("the worked example of the format's document is what the library writes") {
  const auto w = Tensor::arange<float>(6).view({2, 3});
  const auto image =
      test::make_image(Dict{{"w", w}, {"head", w.transpose(0, 1)}, {"step", 7}}, 4 << 20);
  std::ifstream document(MESHSTAGE_FORMAT_DOCUMENT);
  REQUIRE(document);
  const std::regex row("^ +([0-9a-f]{8}): ((?:[0-9a-f]{2,4} )+).*");
  std::smatch match;
  std::size_t rows = 0;
  for (std::string line; std::getline(document, line);) {
    if (!std::regex_match(line, match, row)) continue;
    ++rows;
    std::size_t at = std::stoul(match[1].str(), nullptr, 16);
    std::string hex = match[2].str();
    std::erase(hex, ' ');
    INFO(line);
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2, ++at) {
      REQUIRE(at < image.bytes().size());
      CHECK(std::to_integer<unsigned long>(image.bytes()[at]) ==
            std::stoul(hex.substr(i, 2), nullptr, 16));
    }
  }
  CHECK(rows == 17);
  CHECK(image.bytes().size() == 4520);
}
