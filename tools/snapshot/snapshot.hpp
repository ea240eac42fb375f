#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "tools/snapshot/commands.hpp"

/// The commands that look at snapshots, as functions: they take plain options, print to `out`,
/// return the exit code (0 ok, 1 a negative answer) and throw meshstage::Error. Whatever comes from
/// a file or a name is printed without control characters.
namespace meshstage::tools {

/// Where to look for vaults and persisted images: these directories and what is below them (a few
/// levels). Empty: /dev/shm itself, and the default directories of this user's jobs.
struct Places {
  std::vector<std::filesystem::path> directories;
};

struct LsOptions {
  Places places;
  std::string job;  ///< Only this one's; empty: all.
  bool json = false;
};
/// The vaults' slots and the persisted images on this host.
int list_snapshots(const LsOptions& options, std::ostream& out);

struct InspectOptions {
  std::string snapshot;  ///< A file, or JOB/RANK[@[GENERATION.]STEP][:HOLDER].
  Places places;
  std::string path;                  ///< Only what is at or below this path; empty: all.
  std::optional<std::size_t> depth;  ///< Levels shown; all if not given.
  bool json = false;
};
int inspect_snapshot(const InspectOptions& options, std::ostream& out);

struct VerifyOptions {
  std::vector<std::string> snapshots;  ///< Files, images or directories; empty: all on this host.
  Places places;
  bool json = false;
};
/// 1 if an image is damaged, or a file is none or has no digests.
int verify_snapshots(const VerifyOptions& options, std::ostream& out);

struct DiffOptions {
  std::string left, right;
  Places places;
  bool structure = false;  ///< That alone, not values.
  std::size_t max = 10;
  bool json = false;
};
/// 1 if they differ.
int diff_snapshots(const DiffOptions& options, std::ostream& out);

struct ExportOptions {
  std::string snapshot;
  std::filesystem::path output;
  Places places;
  std::string path;    ///< Only what is at or below this path.
  bool force = false;  ///< Replace an existing file.
  bool json = false;
};
int export_snapshot(const ExportOptions& options, std::ostream& out);

struct CleanOptions {
  Places places;
  std::string job;
  bool yes = false;
  bool json = false;
};
/// 1 if something was left because nobody said yes.
int clean_vaults(const CleanOptions& options, const Confirm& confirm, std::ostream& out);

struct InfoOptions {
  bool json = false;
};
int show_info(const InfoOptions& options, std::ostream& out);

struct DoctorOptions {
  std::filesystem::path vault = "/dev/shm";
  std::uint64_t state_bytes = 0;  ///< Of one rank; 0: not said.
  int ranks = 1;                  ///< On this host.
  bool json = false;
};
/// 1 if a check failed (warnings alone are 0).
int run_doctor(const DoctorOptions& options, std::ostream& out);

}  // namespace meshstage::tools
