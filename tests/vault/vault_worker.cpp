// The other process of the vault's tests: vault_worker DIRECTORY JOB RANK COMMAND. It says "ready
// ..." on stdout, then does what each line on stdin says, answering with one line, until end of
// file.
//   hold      attaches
//   take-N    attaches in epoch N
//   writing   begins slot own0 for step 9, scribbles over half of it, and does not seal
//   sealed    seals slot own0 for step 7, then begins own1 for step 8 and scribbles
// Lines: "check" (check_owned), "write" (begin_write of own1), "read" (own0), "seal" (what "sealed"
// began), "stop-beginning" and "stop-sealing" (own0 for step 9, own1 for step 8: the process stops
// itself when it has loaded the slot's word), "exec" (becomes a new image of the same process:
// "again" as COMMAND).
#include <meshstage/core/error/error.hpp>
#include <meshstage/core/vault/vault.hpp>

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>

#include "tests/vault/vault_support.hpp"

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const std::string command = argv[4];
  const int rank = std::atoi(argv[3]);
  try {
    bool stops = false;  // between the load of a slot's word and its compare-and-swap
    const auto observer = [&stops](std::string_view point) {
      if (std::exchange(stops, false) && point == "slot-word-loaded") ::raise(SIGSTOP);
    };
    auto vault = meshstage::Vault::attach(
        {.job = argv[2],
         .rank = rank,
         .directory = argv[1],
         .epoch = command.starts_with("take-") ? std::stoull(command.substr(5)) : 0,
         .observer = observer});
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
        if (line == "stop-beginning") {
          stops = true;
          (void)vault.begin_write({rank, 0}, identity_of(argv[2], rank, {1, 9}), 5000);
        }
        if (line == "stop-sealing") {
          stops = true;
          lease.seal(info_of(identity_of(argv[2], rank, {1, 8}, {1, 7}), 5000));
        }
        if (line == "seal") lease.seal(info_of(identity_of(argv[2], rank, {1, 8}, {1, 7}), 5000));
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
