#include "tools/mesh/commands.hpp"

#include <memory>

#include "tools/command/command.hpp"
#include "tools/mesh/options.hpp"

namespace meshstage::tools {
namespace {

// A subcommand whose options live as long as the app: `run` is called with them after parsing.
template <class Options>
CLI::App* add_command(CLI::App& mesh, const char* name, const char* what, const char* example,
                      std::shared_ptr<Options> options, int (*run)(const Options&, std::ostream&),
                      std::ostream& out) {
  CLI::App* command = mesh.add_subcommand(name, what);
  set_example(*command, example);
  command->callback([options, run, &out] {
    const int code = run(*options, out);
    if (code != 0) throw CLI::RuntimeError(code);
  });
  return command;
}

void add_mesh_options(CLI::App& command, MeshWords& words) {
  command.add_option("--mesh", words.mesh, "Sizes of the dimensions: 2,4");
  command.add_option("--names", words.names, "Names of the dimensions: dp,tp (default: dim0,dim1)");
  command.add_option("--ranks", words.ranks,
                     "Ranks in row-major order: 3,7,0-2 (default: 0, 1, ...)");
}

void add_mesh_or_file(CLI::App& command, MeshWords& words) {
  command.add_option("FILE", words.file, "A mesh file (TOML), instead of --mesh");
  add_mesh_options(command, words);
}

void add_job_options(CLI::App& command, JobWords& words) {
  command.add_option("FILE", words.file, "A mesh file (TOML), instead of --mesh and the hosts");
  add_mesh_options(command, words.mesh);
  command.add_option("--ranks-per-host", words.ranks_per_host,
                     "Ranks of each host (default: every rank is a host of its own)");
  command.add_option("--host-sizes", words.host_sizes, "Ranks of each host, uneven: 8,8,6");
  command.add_option("--hosts-per-rack", words.hosts_per_rack, "Hosts of each rack");
  command.add_option(
      "--policy", words.policy,
      "How holders are chosen: half-shift (default), ring, across-hosts, across-racks or cliques");
  command.add_option("--copies", words.copies,
                     "Copies of each rank's image at other ranks (default: 1)");
  command
      .add_option(
          "--tensor", words.tensors,
          "A tensor, NAME=DTYPE[SIZES]:PLACEMENTS: w=f32[1024,512]:S(0),R; on a part of the "
          "mesh with @ behind: h=f32[512]:R@pp=1")
      ->take_all()
      ->allow_extra_args(false)
      ->delimiter('\0');
  command.add_flag("--borrow-replicated", words.borrow_replicated,
                   "Copies borrow tensors that another host has, too");
}

}  // namespace

void add_mesh_commands(CLI::App& app, std::ostream& out, std::optional<std::size_t> width) {
  CLI::App* mesh = app.add_subcommand(
      "mesh", "Shows the layout of a mesh and the losses that it survives, without a job");
  mesh->require_subcommand(1);
  set_example(*mesh, "meshstage mesh show --mesh 2,4 --names dp,tp");

  auto show = std::make_shared<ShowOptions>();
  CLI::App* command = add_command(*mesh, "show", "Coordinates, slices and groups of ranks",
                                  "meshstage mesh show --mesh 2,4 --names dp,tp --slice dp --json",
                                  show, &mesh_show, out);
  add_mesh_or_file(*command, show->mesh);
  command->add_option("--slice", show->slice, "Names of the dimensions of a slice: dp,tp");
  command->add_option("--rank", show->only, "Show these ranks only: 0-3,8");
  command->add_flag("--json", show->json, "One JSON object");
  command->add_flag("--compact", show->compact,
                    "With --json: ranks at equal distances as {\"first\", \"stride\", \"size\"}");

  auto shard = std::make_shared<ShardOptions>();
  shard->width = width;
  command = add_command(*mesh, "shard", "Shows which rank has which block of a tensor",
                        "meshstage mesh shard --mesh 2,4 --tensor 13,7 --placements \"S(0),R\"",
                        shard, &mesh_shard, out);
  add_mesh_or_file(*command, shard->mesh);
  command
      ->add_option("--tensor", shard->tensor,
                   "Sizes of the tensor: 13,7; or the name of a tensor of the FILE")
      ->required();
  command->add_option("--placements", shard->placements,
                      "One for each mesh dimension: R, S(DIM) or P(sum|avg|product|min|max) "
                      "(default: those of the FILE's tensor)");
  command->add_flag("--json", shard->json, "One JSON object");

  auto reshard = std::make_shared<ReshardOptions>();
  command =
      add_command(*mesh, "reshard", "Shows which rank sends which box of a tensor to which rank",
                  "meshstage mesh reshard --from 2,4 --to 3 --tensor 1024,512 --placements "
                  "\"S(0),R\"",
                  reshard, &mesh_reshard, out);
  command->add_option("--from", reshard->from, "Sizes of the mesh before: 2,4")->required();
  command->add_option("--to", reshard->to, "Sizes of the mesh after: 3")->required();
  command->add_option("--tensor", reshard->tensor, "Sizes of the tensor: 1024,512")->required();
  command
      ->add_option("--placements", reshard->placements,
                   "Placements before, one for each mesh dimension: R or S(DIM)")
      ->required();
  command->add_option("--to-placements", reshard->to_placements,
                      "Placements after (default: the same; if the number of mesh dimensions "
                      "differs, the first S(DIM) before, along the first dimension)");
  command->add_flag("--json", reshard->json, "One JSON object");

  auto partners = std::make_shared<PartnersOptions>();
  command =
      add_command(*mesh, "partners", "Shows which ranks hold which copies, and what that costs",
                  "meshstage mesh partners --mesh 2,4 --ranks-per-host 4 --policy across-hosts "
                  "--tensor \"w=f32[1024,512]:S(0),R\" --bandwidth 12.5",
                  partners, &mesh_partners, out);
  add_job_options(*command, partners->job);
  command->add_option("--bandwidth", partners->bandwidth,
                      "GB/s (1e9 bytes) of a host's link each way: adds seconds");
  command->add_flag("--json", partners->json, "One JSON object");

  auto survive = std::make_shared<SurviveWords>();
  command = add_command(*mesh, "survive", "Shows which losses of hosts or racks the copies survive",
                        "meshstage mesh survive --mesh 8 --ranks-per-host 2 --lose host", survive,
                        &mesh_survive, out);
  add_job_options(*command, survive->job);
  command->add_option("--lose", survive->lose,
                      "The unit that is lost at once: rank, host (default) or rack");
  command->add_option("--require", survive->require,
                      "Exit 1 unless every loss of so many units is survived");
  command->add_flag("--json", survive->json, "One JSON object");

  auto check = std::make_shared<CheckOptions>();
  command = add_command(*mesh, "check", "Finds the errors in a mesh file",
                        "meshstage mesh check mesh.toml", check, &mesh_check, out);
  command->add_option("FILE", check->file, "A mesh file (TOML)")->required();
  command->add_flag("--json", check->json, "One JSON object");

  auto draw = std::make_shared<DrawOptions>();
  command = add_command(*mesh, "draw", "Draws hosts, ranks, partners and a tensor (SVG)",
                        "meshstage mesh draw mesh.toml -o mesh.svg", draw, &mesh_draw, out);
  command->add_option("FILE", draw->file, "A mesh file (TOML)")->required();
  command->add_option("-o,--output", draw->output, "The SVG file (default, or -: standard output)");
  command->add_option("--tensor", draw->tensor, "The tensor to draw (default: the first)");
}

}  // namespace meshstage::tools
