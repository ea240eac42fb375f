// stage_file IN OUT: any safetensors file as a state dict, staged, and what was staged as a file.
#include <cstdio>
#include <exception>

#include <meshstage/core/files/state_file.hpp>
#include <meshstage/core/os/file_system.hpp>
#include <meshstage/core/stage/state_dict_stager.hpp>
#include <meshstage/core/tree/compare.hpp>

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::fprintf(stderr, "usage: stage_file IN OUT\n");
    return 2;
  }
  auto& fs = meshstage::real_file_system();
  const meshstage::Value state = meshstage::load_state_file(fs, argv[1]);
  meshstage::StateDictStager stager;
  const meshstage::Value staged = stager.stage_async(state).get();
  if (const auto difference = meshstage::compare(state, staged)) {
    std::fprintf(stderr, "staged otherwise: %s\n", difference->describe().c_str());
    return 1;
  }
  meshstage::save_safetensors(fs, argv[2], staged.as<meshstage::Dict>());
  std::printf("%zu tensors, %zu storages staged\n", staged.as<meshstage::Dict>().size(),
              stager.cached_storages());
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "stage_file: %s\n", e.what());
  return 1;
}
