// A host on which vaults lie whose ranks sit elsewhere by now.
#pragma once
#include <meshstage/core/os/memory_file_system.hpp>
#include <meshstage/core/vault/vault.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/vault/vault_support.hpp"

constexpr std::uint64_t kBefore = 3, kNow = 4;

/// A host whose processes open vaults of job "j", made by ranks of 4.
struct Host {
  meshstage::MemoryFileSystem disk;
  std::vector<std::unique_ptr<meshstage::MemoryFileSystem>> processes;
  std::vector<std::string> warnings;

  meshstage::VaultOptions options(int rank) {
    processes.push_back(disk.as_process(100 + static_cast<std::int64_t>(processes.size())));
    return {.job = "j", .rank = rank, .directory = "/vault", .fs = processes.back().get()};
  }
  meshstage::Vault attach(int rank) { return meshstage::Vault::attach(options(rank)); }
  /// Of a process that has come as far as the generation.
  meshstage::Vault enter(int rank, std::uint64_t generation) {
    meshstage::Vault vault = attach(rank);
    vault.note_generation(generation);
    return vault;
  }
  std::vector<meshstage::StraySlot> take(meshstage::Vault& vault, std::uint64_t generation = kNow,
                                         int world = 4) {
    meshstage::StraySearch search{generation, world};
    search.warn = [this](const std::string& text) { warnings.push_back(text); };
    return vault.take_strays(search);
  }
  std::size_t count(const std::string& mark) {
    std::size_t found = 0;
    for (const auto& name : disk.list("/vault")) found += name.find(mark) != std::string::npos;
    return found;
  }
};

/// Rank 1's vault, with its own image of step 7 and its replica of rank 3's.
inline void fill(meshstage::Vault& vault) {
  write_image(vault, {1, 0}, identity_of("j", 1, {kBefore, 7}), 100);
  write_image(vault, {3, 1}, identity_of("j", 3, {kBefore, 7}), 200);
}
