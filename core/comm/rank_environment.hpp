#pragma once
#include <map>
#include <string>

#include <meshstage/core/error/export.hpp>

namespace meshstage {

/// Rank, world size and more of this process, from the launcher's variables.
///
/// Sources, each a set of variables:
///   meshstage  MESHSTAGE_RANK, MESHSTAGE_WORLD_SIZE, MESHSTAGE_LOCAL_RANK,
///              MESHSTAGE_LOCAL_WORLD_SIZE
///   torchrun   RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE
///   mpirun     OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_LOCAL_RANK,
///              OMPI_COMM_WORLD_LOCAL_SIZE; or PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS
///   srun       SLURM_PROCID, SLURM_STEP_NUM_TASKS (else SLURM_NTASKS), SLURM_LOCALID,
///              SLURM_STEP_TASKS_PER_NODE (else SLURM_TASKS_PER_NODE) of node SLURM_NODEID
/// MESHSTAGE_* overrides the others, because a user set it on purpose. srun's variables count only
/// if no other launcher's are set: a torchrun or mpirun that srun started passes them on, and there
/// they number the launchers, not the ranks. torchrun's and mpirun's must not contradict each
/// other. Without any rank and size the process is rank 0 of 1; SLURM variables without
/// SLURM_PROCID (an allocation without srun) do not count. MASTER_ADDR and MASTER_PORT are not
/// read: that port belongs to another store.
struct MESHSTAGE_API RankEnvironment {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;        ///< Number among this host's ranks; `rank` if unknown.
  int local_world_size = 1;  ///< Ranks of this host; `world_size` if unknown.
  /// MESHSTAGE_JOB; else the run id that the user gave torchrun (TORCHELASTIC_RUN_ID); else
  /// "slurm-" and SLURM_JOB_ID; or empty. A run id that torchrun drew itself does not count,
  /// because it differs at each start.
  std::string job;
  /// The name of this start of all ranks; the next start has another one. MESHSTAGE_LAUNCH; else
  /// from the launcher that is the source: torchrun's run id, Slurm's job, restart count and step,
  /// or mpirun's PMIX_NAMESPACE. Without spaces; empty if there is none.
  std::string launch;
  /// MESHSTAGE_TAKE_OVER=1: see CheckpointerOptions::take_over.
  bool take_over = false;
  std::string store;  ///< MESHSTAGE_STORE (see open_store()), or empty.
  /// MESHSTAGE_HOST: the name or address at which other hosts reach this one, or empty.
  std::string host;
  /// MESHSTAGE_SUPERVISOR: the socket of the program that started this rank, or empty.
  std::string supervisor;
  std::string source;  ///< "meshstage", "torchrun", "mpirun", "srun" or "none".
  /// False: no source gives the number of ranks on this host (RANK and WORLD_SIZE alone, srun
  /// without its task counts), so other ranks may be on other hosts.
  bool local_size_known = true;

  /// Reads a given environment. Throws InvalidArgument for a variable that is missing or no number,
  /// and for two that contradict each other; the message names the variables and their values.
  [[nodiscard]] static RankEnvironment detect(
      const std::map<std::string, std::string>& environment);
  /// Reads this process's environment.
  [[nodiscard]] static RankEnvironment detect();

  /// True if all ranks are known to be on this host, so that the loopback interface suffices.
  /// Otherwise a rank is reached at its host's address (TcpTransportOptions::host), or
  /// MESHSTAGE_HOST.
  [[nodiscard]] bool single_host() const noexcept {
    return world_size == 1 || (local_size_known && local_world_size == world_size);
  }
};

}  // namespace meshstage
