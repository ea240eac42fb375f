// Any bytes as a safetensors file: CorruptData with one printable line, or an index in which
// everything fits, and a state dict that comes back equal from a file of its own.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/image/safetensors.hpp>
#include <meshstage/core/image/safetensors_dict.hpp>

using namespace meshstage;

namespace {

void check_line(const Error& e) {
  for (const char* c = e.what(); *c != '\0'; ++c) {
    if (static_cast<unsigned char>(*c) < 0x20) std::abort();
  }
}

void check(const SafetensorsIndex& index, std::size_t size) {
  if (index.data_begin() + index.data_bytes() != size) std::abort();
  std::uint64_t end = 0;
  for (const auto& entry : index.entries()) {
    if (entry.begin != end || entry.end < entry.begin) std::abort();
    end = entry.end;
    if (index.find(entry.name) != &entry) std::abort();
  }
  if (end != index.data_bytes()) std::abort();
}

std::vector<std::byte> contents_of(const Tensor& tensor) {
  const Tensor flat = tensor.clone();
  return {flat.storage().bytes().begin(), flat.storage().bytes().end()};
}

std::vector<std::byte> file_of(const Dict& tensors) {
  const auto plan = plan_safetensors(tensors);
  std::vector<std::byte> file = plan.header;
  for (const Tensor& tensor : plan.tensors) {
    const auto bytes = contents_of(tensor);
    file.insert(file.end(), bytes.begin(), bytes.end());
  }
  if (file.size() != plan.file_bytes) std::abort();
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto storage = Storage::allocate(size);  // so that a read beyond is seen
  if (size != 0) std::memcpy(storage.data(), data, size);
  const std::span<const std::byte> file = storage.bytes();
  try {
    const auto index = SafetensorsIndex::parse(file);
    check(index, size);
    (void)SafetensorsIndex::parse_front(file.first(index.data_begin()), size);
  } catch (const CorruptData& e) {
    check_line(e);
    return 0;
  }
  try {
    const Dict tensors = decode_safetensors(file, nullptr);
    const auto again = file_of(tensors);
    const Dict twice = decode_safetensors(again, nullptr);
    if (twice.size() != tensors.size()) std::abort();
    for (const auto& [key, value] : tensors) {
      const auto& a = value.as<Tensor>();
      const auto& b = twice.at(key).as<Tensor>();
      if (a.shape() != b.shape() || a.dtype() != b.dtype()) std::abort();
      if (contents_of(a) != contents_of(b)) std::abort();
    }
  } catch (const CorruptData& e) {
    check_line(e);
  }
  return 0;
}
