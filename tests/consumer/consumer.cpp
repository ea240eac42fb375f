// What an outside project does with the installed package: stages one rank's state dict and gets it
// back. Prints one line; exit status 0 if the state came back.
#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <meshstage/core/checkpoint/checkpointer.hpp>

int main() {
  namespace ms = meshstage;
  namespace fs = std::filesystem;
  const fs::path directory =
      fs::temp_directory_path() / ("meshstage-consumer-" + std::to_string(::getpid()));
  bool same = false;
  try {
    const ms::CheckpointerOptions options{
        .job = "consumer", .directory = directory, .vault_directory = directory / "vault"};
    ms::Tensor weight = ms::Tensor::from_vector<float>({1, 2, 3, 4, 5, 6}, {2, 3});
    ms::Dict state{{"weight", weight}, {"step", 1}};
    {
      ms::Checkpointer ckpt(options);
      (void)ckpt.recover(state);
      ckpt.stage(state, 1).outcome().wait();
    }
    weight.data<float>()[0] = -1;
    ms::Checkpointer ckpt(options);
    same = ckpt.recover(state).step == 1 && weight.data<float>()[0] == 1;
    ckpt.finish();
  } catch (const ms::Error& e) {
    std::cerr << e.what() << "\n";
  }
  fs::remove_all(directory);
  std::cout << (same ? "consumer: the state came back\n" : "consumer: FAILED\n");
  return same ? 0 : 1;
}
