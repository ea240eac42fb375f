#include "tools/snapshot/commands.hpp"

#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>

#include "tools/command/command.hpp"
#include "tools/snapshot/snapshot.hpp"
#include "tools/snapshot/text.hpp"

namespace meshstage::tools {
namespace {

constexpr const char* kSnapshotHelp =
    "A safetensors file, the index of several (model.safetensors.index.json), or an image on this "
    "host: JOB/RANK[@[GENERATION.]STEP][:HOLDER], as `ls` "
    "prints them (the newest if no step is given)";

/// The callback's code becomes the program's.
void end_with(int code) {
  if (code != 0) throw CLI::RuntimeError(code);
}

void add_in(CLI::App* command, Places& places) {
  command
      ->add_option("--in", places.directories,
                   "Look for images in DIR and below; repeatable (default: /dev/shm and "
                   "the jobs' default directories)")
      ->type_name("DIR")
      ->allow_extra_args(false);
}

void add_json(CLI::App* command, bool& json) {
  command->add_flag("--json", json, "Print one JSON object");
}

CLI::Option* add_snapshot(CLI::App* command, const std::string& name, std::string& snapshot) {
  return command->add_option(name, snapshot, kSnapshotHelp)->type_name("FILE|IMAGE")->required();
}

/// A subcommand with options of its own that live as long as the app.
template <class Options, class Run>
CLI::App* add(CLI::App& app, const char* name, const char* help, const char* example,
              std::shared_ptr<Options> options, Run run) {
  CLI::App* command = app.add_subcommand(name, help);
  set_example(*command, example);
  command->callback([options, run] { end_with(run(*options)); });
  return command;
}

void add_ls(CLI::App& app, std::ostream& out) {
  auto o = std::make_shared<LsOptions>();
  CLI::App* c =
      add(app, "ls",
          "Lists the images on this host: in the vaults of running and dead ranks, and on disk",
          "meshstage ls --job gpt2", o,
          [&out](const LsOptions& options) { return list_snapshots(options, out); });
  c->add_option("directory", o->places.directories,
                "Look in DIR and below instead of /dev/shm and the jobs' default directories")
      ->type_name("DIR");
  c->add_option("--job", o->job, "Only this job's images")->type_name("JOB");
  add_json(c, o->json);
}

void add_inspect(CLI::App& app, std::ostream& out) {
  auto o = std::make_shared<InspectOptions>();
  CLI::App* c =
      add(app, "inspect",
          "Shows the contents of a snapshot: names, dtypes, shapes, sharing, values. Takes any "
          "safetensors file; one that is not sound is refused with the reason (exit 1)",
          "meshstage inspect model.safetensors\n  meshstage inspect gpt2/0@85 --path model --json",
          o, [&out](const InspectOptions& options) { return inspect_snapshot(options, out); });
  add_snapshot(c, "snapshot", o->snapshot);
  c->add_option("--path", o->path, "Only what is at or below this path: keys joined by dots")
      ->type_name("PATH");
  c->add_option("--depth", o->depth, "Show this many levels")
      ->type_name("N")
      ->check(whole_number());
  add_in(c, o->places);
  add_json(c, o->json);
}

void add_verify(CLI::App& app, std::ostream& out) {
  auto o = std::make_shared<VerifyOptions>();
  CLI::App* c =
      add(app, "verify",
          "Checks every digest of images; exit 1 if a file is damaged, is no image, or is a plain "
          "safetensors file, which has no digests, and if there is nothing to check",
          "meshstage verify /scratch/ckpt", o,
          [&out](const VerifyOptions& options) { return verify_snapshots(options, out); });
  c->add_option("snapshot", o->snapshots,
                "Files, images (JOB/RANK[@STEP][:HOLDER]) or directories; all images on this host "
                "if none is given")
      ->type_name("FILE|IMAGE|DIR");
  add_in(c, o->places);
  add_json(c, o->json);
}

void add_diff(CLI::App& app, std::ostream& out) {
  auto o = std::make_shared<DiffOptions>();
  CLI::App* c = add(app, "diff",
                    "Compares two snapshots, bit for bit, and prints the first differences by "
                    "path; exit 1 if there are any. If one is a plain safetensors file, tensors "
                    "are compared by their names, and other values only if the file was exported",
                    "meshstage diff gpt2/0@80 gpt2/0@85", o,
                    [&out](const DiffOptions& options) { return diff_snapshots(options, out); });
  add_snapshot(c, "left", o->left);
  add_snapshot(c, "right", o->right);
  c->add_flag("--structure", o->structure, "Compare structure alone, not values");
  c->add_option("--max", o->max, "Print this many differences")
      ->type_name("N")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_in(c, o->places);
  add_json(c, o->json);
}

void add_export(CLI::App& app, std::ostream& out) {
  auto o = std::make_shared<ExportOptions>();
  CLI::App* c = add(
      app, "export",
      "Writes every path as a tensor of its own (contiguous; shared storages are repeated) into a "
      "safetensors file that any reader opens; values that are no tensors go into its metadata",
      "meshstage export gpt2/0@85 --output model.safetensors --path model", o,
      [&out](const ExportOptions& options) { return export_snapshot(options, out); });
  add_snapshot(c, "snapshot", o->snapshot);
  c->add_option("-o,--output", o->output, "The file to write")->type_name("FILE")->required();
  c->add_option("--path", o->path,
                "Only what is at or below this path (keys joined by dots), named from there")
      ->type_name("PATH");
  c->add_flag("--force", o->force, "Replace the file if it exists");
  add_in(c, o->places);
  add_json(c, o->json);
}

void add_clean(CLI::App& app, std::ostream& out, Confirm confirm) {
  auto o = std::make_shared<CleanOptions>();
  CLI::App* c =
      add(app, "clean",
          "Removes vaults without a living owner, if no rank of their job lives on this host. Asks "
          "first; without a terminal it only lists them (exit 1) unless --yes is given. "
          "Persisted images are never removed",
          "meshstage clean --job gpt2 --yes", o,
          [&out, confirm = std::move(confirm)](const CleanOptions& options) {
            return clean_vaults(options, confirm, out);
          });
  c->add_option("directory", o->places.directories, "Look in DIR and below instead of /dev/shm")
      ->type_name("DIR");
  c->add_option("--job", o->job, "Only this job's vaults")->type_name("JOB");
  c->add_flag("-y,--yes", o->yes, "Do not ask");
  add_json(c, o->json);
}

void add_info(CLI::App& app, std::ostream& out) {
  auto o = std::make_shared<InfoOptions>();
  CLI::App* c = add(app, "info", "Version, backends and where they were found, CPU features in use",
                    "meshstage info", o,
                    [&out](const InfoOptions& options) { return show_info(options, out); });
  add_json(c, o->json);
}

void add_doctor(CLI::App& app, std::ostream& out) {
  auto o = std::make_shared<DoctorOptions>();
  CLI::App* c = add(
      app, "doctor",
      "Checks this host: memory, shared memory, huge pages, limits, environment; each problem with "
      "its remedy. Exit 1 if something would keep a job from running",
      "meshstage doctor --state 1.5GiB --ranks 4", o,
      [&out](const DoctorOptions& options) { return run_doctor(options, out); });
  c->add_option("--vault", o->vault, "The vault's directory")
      ->type_name("DIR")
      ->capture_default_str();
  c->add_option(
       "--state", o->state_bytes,
       "Bytes of one rank's state dict (1500000000, 1.5GB, 1.4GiB): checks that there is room for "
       "the four images of that size that each rank keeps (two of them copies, counted as whole)")
      ->type_name("SIZE")
      ->transform([](const std::string& text) { return std::to_string(parse_size(text)); });
  c->add_option("--ranks", o->ranks, "Ranks on this host")
      ->type_name("N")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  add_json(c, o->json);
}

}  // namespace

Confirm ask_on_terminal() {
  if (::isatty(STDIN_FILENO) == 0 || ::isatty(STDOUT_FILENO) == 0) return {};
  return [](const std::string& question) {
    std::cout << question << " [y/N] " << std::flush;
    std::string answer;
    return std::getline(std::cin, answer) && (answer == "y" || answer == "Y" || answer == "yes");
  };
}

void add_snapshot_commands(CLI::App& app, std::ostream& out, Confirm confirm) {
  add_ls(app, out);
  add_inspect(app, out);
  add_verify(app, out);
  add_diff(app, out);
  add_export(app, out);
  add_clean(app, out, std::move(confirm));
  add_info(app, out);
  add_doctor(app, out);
}

}  // namespace meshstage::tools
