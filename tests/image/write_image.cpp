// write_image FILE [plain | full | borrowing | example]: writes an image of the GPT-2 state to
// FILE, scaled down unless `full`, for the check that Python's safetensors reads it. `borrowing`:
// with storages at its front that its replicas borrow.
#include <cstring>
#include <fstream>
#include <iostream>

#include "tests/support/states.hpp"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: write_image FILE [plain | full | borrowing | example]\n";
    return 2;
  }
  const std::string what = argc > 2 ? argv[2] : "";
  using namespace meshstage;
  Dict state;
  if (what == "full") {
    state = test::gpt2_state(50257, 12, 768, 1024);
  } else if (what == "example") {
    const auto w = Tensor::arange<float>(6).view({2, 3});
    state = {{"w", w}, {"head", w.transpose(0, 1)}, {"step", 7}};
  } else {
    state = test::gpt2_state(131, 3, 16, 32);
    state.set("every", Dict{{"bf16", Tensor::full<BFloat16>({3}, {0x3F80})},
                            {"c128", Tensor::full<std::complex<double>>({2}, {1, -2})},
                            {"c64", Tensor::full<std::complex<float>>({2, 1}, {3, 4})},
                            {"f8", Tensor::full<Float8E4M3>({5}, {0x7F})},
                            {"empty", Tensor::empty({0, 3}, DType::kF16)},
                            {"flags", Tensor::from_vector<bool>({true, false, true})},
                            {"part", Tensor::arange<std::int32_t>(10).narrow(0, 2, 5)},
                            {"a.b", List{Tensor::scalar(std::int64_t{-5})}}});
  }
  const auto image = what == "borrowing"
                         ? test::make_image(state, 4096, 85, {{0, {"model.wte%2Eweight"}}})
                         : test::make_image(state, 4 << 20);
  if ((what == "borrowing") != (image.info.borrowed_bytes != 0)) return 1;
  std::ofstream file(argv[1], std::ios::binary);
  file.write(reinterpret_cast<const char*>(image.bytes().data()),
             static_cast<std::streamsize>(image.bytes().size()));
  file.close();
  return file ? 0 : 1;
}
