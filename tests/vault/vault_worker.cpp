// The other process of the vault's tests: vault_worker DIRECTORY JOB RANK COMMAND. It says "ready
// ..." on stdout, then does what each line on stdin says, answering with one line, until end of
// file.
//   hold      attaches
//   writing   begins slot own0 for step 9, scribbles over half of it, and does not seal
//   sealed    seals slot own0 for step 7, then begins own1 for step 8 and scribbles
// Lines: "check" (check_owned), "write" (begin_write of own1), "read" (own0), "exec" (becomes a new
// image of the same process: "again" as COMMAND).
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/vault.hpp>

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <string>

#include "tests/vault/vault_support.hpp"

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const std::string command = argv[4];
  const int rank = std::atoi(argv[3]);
  try {
    auto vault = meshstage::Vault::attach({.job = argv[2], .rank = rank, .directory = argv[1]});
    meshstage::WriteLease lease;
    if (command == "sealed") {
      write_image(vault, {rank, 0}, identity_of(argv[2], rank, {1, 7}), 5000);
      lease = vault.begin_write({rank, 1}, identity_of(argv[2], rank, {1, 8}, {1, 7}), 5000);
    } else if (command == "writing") {
      lease = vault.begin_write({rank, 0}, identity_of(argv[2], rank, {1, 9}), 5000);
    }
    std::fill_n(lease.image().begin(), lease.image().size() / 2, std::byte{0xee});
    std::cout << "ready " << vault.incarnation() << (vault.taken_over() ? " taken over" : "")
              << std::endl;
    for (std::string line; std::getline(std::cin, line);) {
      try {
        if (line == "check") vault.check_owned();
        if (line == "write")
          (void)vault.begin_write({rank, 1}, identity_of(argv[2], rank, {1, 9}), 100);
        if (line == "read") (void)vault.read({rank, 0});
        if (line == "exec") {
          std::string again = "hold";
          argv[4] = again.data();
          ::execv("/proc/self/exe", argv);
        }
        std::cout << "fine" << std::endl;
      } catch (const meshstage::Error& e) {
        std::cout << e.what() << std::endl;
      }
    }
  } catch (const meshstage::Error& e) {
    std::cout << "error " << e.what() << std::endl;
    return 1;
  }
  return 0;
}
