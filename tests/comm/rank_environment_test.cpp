#include <meshstage/core/comm/rank_environment.hpp>

#include <meshstage/core/error/error.hpp>

#include "tests/support/catch.hpp"

using meshstage::RankEnvironment;
using Variables = std::map<std::string, std::string>;

TEST_CASE("each launcher's variables say rank, world size and place on the host") {
  const std::vector<std::pair<std::string, Variables>> launchers{
      {"meshstage",
       {{"MESHSTAGE_RANK", "5"},
        {"MESHSTAGE_WORLD_SIZE", "8"},
        {"MESHSTAGE_LOCAL_RANK", "1"},
        {"MESHSTAGE_LOCAL_WORLD_SIZE", "4"}}},
      {"torchrun",
       {{"RANK", "5"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "4"}}},
      {"mpirun",
       {{"OMPI_COMM_WORLD_RANK", "5"},
        {"OMPI_COMM_WORLD_SIZE", "8"},
        {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
        {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}}},
      {"mpirun",
       {{"PMI_RANK", "5"}, {"PMI_SIZE", "8"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "4"}}},
      {"srun",
       {{"SLURM_PROCID", "5"},
        {"SLURM_NTASKS", "8"},
        {"SLURM_LOCALID", "1"},
        {"SLURM_TASKS_PER_NODE", "4(x2)"}}}};
  for (const auto& [source, variables] : launchers) {
    INFO(source);
    const auto e = RankEnvironment::detect(variables);
    CHECK(e.source == source);
    CHECK(e.rank == 5);
    CHECK(e.world_size == 8);
    CHECK(e.local_rank == 1);
    CHECK(e.local_world_size == 4);
    CHECK_FALSE(e.single_host());
  }
}

TEST_CASE("without any launcher a process is rank 0 of 1, also inside an allocation") {
  for (const Variables& variables :
       {Variables{}, Variables{{"SLURM_NTASKS", "8"}},
        Variables{{"MESHSTAGE_JOB", "j"}, {"MESHSTAGE_STORE", "/s"}}}) {
    const auto e = RankEnvironment::detect(variables);
    CHECK(e.source == "none");
    CHECK(e.rank == 0);
    CHECK(e.world_size == 1);
    CHECK(e.single_host());
  }
  const auto named = RankEnvironment::detect({{"MESHSTAGE_JOB", "j"}, {"MESHSTAGE_STORE", "/s"}});
  CHECK(named.job == "j");
  CHECK(named.store == "/s");
}

TEST_CASE("a job that has no name of its own is called after its launcher's, where that lasts") {
  const auto job = [](const Variables& variables) {
    return RankEnvironment::detect(variables).job;
  };
  CHECK(job({{"TORCHELASTIC_RUN_ID", "gpt2"}, {"SLURM_JOB_ID", "17"}}) == "gpt2");
  CHECK(job({{"MESHSTAGE_JOB", "j"}, {"TORCHELASTIC_RUN_ID", "gpt2"}}) == "j");
  // What torchrun draws is another at each start.
  CHECK(job({{"TORCHELASTIC_RUN_ID", "none"}}).empty());
  CHECK(job({{"TORCHELASTIC_RUN_ID", "0b8dcb1c-6b4f-4b5e-9d5d-6fbb0c1d8a11"}}).empty());
  CHECK(job({{"TORCHELASTIC_RUN_ID", "0b8dcb1c-6b4f-4b5e-9d5d-6fbb0c1d8az1"}}).ends_with("z1"));
  CHECK(job({{"SLURM_JOB_ID", "17"}}) == "slurm-17");
}

TEST_CASE("a launcher that srun started numbers the ranks, srun only the launchers") {
  // Two nodes, srun with one task on each, torchrun with four ranks on each: the second of node 1.
  const Variables slurm{{"SLURM_JOB_ID", "17"},
                        {"SLURM_NTASKS", "2"},
                        {"SLURM_NNODES", "2"},
                        {"SLURM_PROCID", "1"},
                        {"SLURM_STEP_NUM_TASKS", "2"},
                        {"SLURM_LOCALID", "0"},
                        {"SLURM_STEP_TASKS_PER_NODE", "1(x2)"}};
  const auto with = [&](Variables more) {
    more.insert(slurm.begin(), slurm.end());
    return RankEnvironment::detect(more);
  };
  const auto torch = with({{"RANK", "5"},
                           {"WORLD_SIZE", "8"},
                           {"LOCAL_RANK", "1"},
                           {"LOCAL_WORLD_SIZE", "4"},
                           {"TORCHELASTIC_RUN_ID", "17"},
                           {"MASTER_ADDR", "node0"},
                           {"MASTER_PORT", "29500"}});
  CHECK(torch.source == "torchrun");
  CHECK(torch.rank == 5);
  CHECK(torch.world_size == 8);
  CHECK(torch.local_rank == 1);
  CHECK(torch.local_world_size == 4);
  CHECK(torch.store.empty());

  const auto mpi = with({{"OMPI_COMM_WORLD_RANK", "5"},
                         {"OMPI_COMM_WORLD_SIZE", "8"},
                         {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                         {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}});
  CHECK(mpi.source == "mpirun");
  CHECK(mpi.rank == 5);

  const auto alone = with({});
  CHECK(alone.source == "srun");
  CHECK(alone.rank == 1);
  CHECK(alone.world_size == 2);
  CHECK(alone.local_world_size == 1);
  CHECK_FALSE(alone.single_host());

  // Nodes with unequal numbers of tasks: a job of several hosts is not taken for one of a single.
  const std::vector<std::pair<const char*, int>> nodes{{"0", 4}, {"1", 4}, {"2", 1}};
  for (const auto& [node, tasks] : nodes) {
    const auto unequal = RankEnvironment::detect({{"SLURM_PROCID", "8"},
                                                  {"SLURM_NTASKS", "9"},
                                                  {"SLURM_LOCALID", "0"},
                                                  {"SLURM_NODEID", node},
                                                  {"SLURM_TASKS_PER_NODE", "4(x2),1"}});
    CHECK(unequal.local_world_size == tasks);
    CHECK_FALSE(unequal.single_host());
  }
}

TEST_CASE("ranks are on one host only where a launcher says so") {
  // Loopback would be an address that ranks of other hosts take for their own.
  const std::vector<Variables> unsaid{
      {{"RANK", "1"}, {"WORLD_SIZE", "2"}},
      {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}},
      {{"MESHSTAGE_RANK", "1"}, {"MESHSTAGE_WORLD_SIZE", "2"}},
      {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}},
      {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"SLURM_LOCALID", "1"}}};
  for (const Variables& variables : unsaid) {
    INFO(variables.begin()->first);
    const auto e = RankEnvironment::detect(variables);
    CHECK(e.local_world_size == 2);
    CHECK_FALSE(e.local_size_known);
    CHECK_FALSE(e.single_host());
  }
  CHECK(RankEnvironment::detect({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_WORLD_SIZE", "2"}})
            .single_host());
  CHECK(RankEnvironment::detect({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).single_host());
  CHECK(RankEnvironment::detect({{"SLURM_PROCID", "1"},
                                 {"SLURM_NTASKS", "2"},
                                 {"SLURM_LOCALID", "1"},
                                 {"SLURM_STEP_TASKS_PER_NODE", "2"}})
            .single_host());
}

TEST_CASE("what is said of job, store and host is passed on") {
  const auto e = RankEnvironment::detect(
      {{"MESHSTAGE_JOB", "j"}, {"MESHSTAGE_STORE", "file:/s"}, {"MESHSTAGE_HOST", "10.0.0.7"}});
  CHECK(e.job == "j");
  CHECK(e.store == "file:/s");
  CHECK(e.host == "10.0.0.7");
}

TEST_CASE("a start is called as the launcher of the ranks calls it") {
  const auto launch = [](Variables variables) { return RankEnvironment::detect(variables).launch; };
  const Variables torchrun{{"RANK", "0"},
                           {"WORLD_SIZE", "2"},
                           {"TORCHELASTIC_RUN_ID", "my run"},
                           {"TORCHELASTIC_RESTART_COUNT", "3"}};
  CHECK(launch(torchrun) == "torchrun-my_run");  // each agent counts restarts by itself
  CHECK(launch({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"TORCHELASTIC_RUN_ID", "none"}}).empty());
  CHECK(launch({{"OMPI_COMM_WORLD_RANK", "0"},
                {"OMPI_COMM_WORLD_SIZE", "2"},
                {"PMIX_NAMESPACE", "77@1"}}) == "mpirun-77@1");
  Variables srun{{"SLURM_PROCID", "0"},
                 {"SLURM_NTASKS", "2"},
                 {"SLURM_JOB_ID", "12"},
                 {"SLURM_RESTART_COUNT", "1"},
                 {"SLURM_STEP_ID", "4"}};
  CHECK(launch(srun) == "srun-12.1.4");
  // Ranks that are numbered by hand may be tasks of several steps, and are one start all the same.
  srun.insert({{"MESHSTAGE_RANK", "0"}, {"MESHSTAGE_WORLD_SIZE", "2"}});
  CHECK(launch(srun).empty());
  srun["MESHSTAGE_LAUNCH"] = "tuesday";
  CHECK(launch(srun) == "tuesday");
  CHECK_FALSE(RankEnvironment::detect(srun).take_over);
  srun["MESHSTAGE_TAKE_OVER"] = "1";
  CHECK(RankEnvironment::detect(srun).take_over);
}

TEST_CASE("variables set by hand beat a launcher's") {
  const auto e = RankEnvironment::detect({{"MESHSTAGE_RANK", "1"},
                                          {"MESHSTAGE_WORLD_SIZE", "2"},
                                          {"OMPI_COMM_WORLD_RANK", "0"},
                                          {"OMPI_COMM_WORLD_SIZE", "1"}});
  CHECK(e.source == "meshstage");
  CHECK(e.rank == 1);
  CHECK(e.world_size == 2);
}

TEST_CASE("a missing, senseless or contradictory variable is named with its value") {
  using Words = std::vector<std::string>;
  const std::vector<std::pair<Variables, Words>> bad{
      {{{"RANK", "1"}}, {"RANK=1", "WORLD_SIZE"}},
      {{{"WORLD_SIZE", "4"}}, {"WORLD_SIZE=4", "RANK"}},
      {{{"LOCAL_RANK", "0"}}, {"LOCAL_RANK=0", "RANK"}},
      {{{"MESHSTAGE_RANK", "1"}, {"WORLD_SIZE", "4"}, {"RANK", "1"}},
       {"MESHSTAGE_RANK=1", "MESHSTAGE_WORLD_SIZE"}},
      {{{"RANK", "x"}, {"WORLD_SIZE", "4"}}, {"RANK=x"}},
      {{{"RANK", "-1"}, {"WORLD_SIZE", "4"}}, {"RANK=-1"}},
      {{{"RANK", ""}, {"WORLD_SIZE", "4"}}, {"RANK="}},
      {{{"RANK", "4"}, {"WORLD_SIZE", "4"}}, {"RANK=4", "WORLD_SIZE=4"}},
      {{{"RANK", "1"},
        {"WORLD_SIZE", "4"},
        {"OMPI_COMM_WORLD_RANK", "2"},
        {"OMPI_COMM_WORLD_SIZE", "4"}},
       {"RANK=1", "OMPI_COMM_WORLD_RANK=2"}},
      {{{"SLURM_PROCID", "1"}}, {"SLURM_PROCID=1", "SLURM_STEP_NUM_TASKS"}},
      {{{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "3"}, {"SLURM_TASKS_PER_NODE", "2,1"}},
       {"SLURM_TASKS_PER_NODE=2,1", "SLURM_NODEID"}},
      {{{"SLURM_PROCID", "1"},
        {"SLURM_NTASKS", "3"},
        {"SLURM_NODEID", "2"},
        {"SLURM_TASKS_PER_NODE", "2,1"}},
       {"SLURM_TASKS_PER_NODE=2,1", "SLURM_NODEID"}},
      {{{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "3"}, {"SLURM_TASKS_PER_NODE", "2(x"}},
       {"SLURM_TASKS_PER_NODE=2(x"}},
      {{{"SLURM_PROCID", "4"}, {"SLURM_NTASKS", "4"}}, {"SLURM_PROCID=4", "SLURM_NTASKS=4"}},
      {{{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "4"}, {"RANK", "1"}}, {"RANK=1", "WORLD_SIZE"}},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "4"}},
       {"WORLD_SIZE=2", "4"}}};
  for (const auto& [variables, words] : bad) {
    try {
      (void)RankEnvironment::detect(variables);
      FAIL("accepted " << words.front());
    } catch (const meshstage::InvalidArgument& e) {
      for (const auto& word : words) CHECK_THAT(e.what(), Catch::Matchers::Contains(word));
    }
  }
}
