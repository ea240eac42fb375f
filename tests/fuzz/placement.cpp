// Any text as placements, as a tensor of the command line and as a list of ranks: InvalidArgument
// with one printable line, or what prints and parses as the same again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <meshstage/core/error/error.hpp>
#include <meshstage/mesh/mesh_file.hpp>
#include <meshstage/mesh/placement.hpp>
#include <meshstage/mesh/replicated.hpp>

using namespace meshstage;

namespace {

void check_line(const Error& e) {
  for (const char* c = e.what(); *c != '\0'; ++c) {
    if (static_cast<unsigned char>(*c) < 0x20) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const Placements placements = parse_placements(text);
    if (parse_placements(to_string(placements)) != placements) std::abort();
  } catch (const InvalidArgument& e) {
    check_line(e);
  }
  try {
    const TensorSpec tensor = parse_tensor_spec(text);
    if (checked_bytes(tensor) < 0) std::abort();
  } catch (const InvalidArgument& e) {
    check_line(e);
  }
  try {
    for (const int r : parse_ranks(text, 4096)) {
      if (r < 0) std::abort();
    }
  } catch (const InvalidArgument& e) {
    check_line(e);
  }
  return 0;
}
