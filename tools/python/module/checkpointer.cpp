#include "checkpointer.hpp"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/async/origin.hpp>
#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>

#include "any_world.hpp"
#include "caller.hpp"
#include "cuda.hpp"
#include "log_queue.hpp"
#include "released.hpp"
#include "tree.hpp"

namespace nb = nanobind;

namespace meshstage::python {
namespace {

using Seconds = std::chrono::duration<double>;

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Deadline::length(Seconds(seconds)));
}

WhenBusy when_busy_of(const std::string& name) {
  if (name == "wait") return WhenBusy::kWait;
  if (name == "skip") return WhenBusy::kSkip;
  throw InvalidArgument("when_busy is '" + name + "': 'wait' or 'skip'");
}

collectives::Element element_of(DType dtype) {
  using collectives::Element;
  switch (dtype) {
    case DType::kU8:
      return Element::kU8;
    case DType::kI8:
      return Element::kI8;
    case DType::kI16:
      return Element::kI16;
    case DType::kI32:
      return Element::kI32;
    case DType::kI64:
      return Element::kI64;
    case DType::kF16:
      return Element::kF16;
    case DType::kBF16:
      return Element::kBF16;
    case DType::kF32:
      return Element::kF32;
    case DType::kF64:
      return Element::kF64;
    default:
      throw InvalidArgument("elements of " + std::string(to_string(dtype)) + " cannot be reduced");
  }
}

collectives::ReduceOp op_of(const std::string& name) {
  using collectives::ReduceOp;
  if (name == "sum") return ReduceOp::kSum;
  if (name == "avg") return ReduceOp::kAvg;
  if (name == "product") return ReduceOp::kProduct;
  if (name == "min") return ReduceOp::kMin;
  if (name == "max") return ReduceOp::kMax;
  throw InvalidArgument("there is no operation '" + name + "': sum, avg, product, min, max");
}

/// Python's handle to a queue. Threads of C++ hold the queue, never Python's object.
struct PythonLog {
  std::shared_ptr<LogQueue> queue = std::make_shared<LogQueue>();
};

/// A staged step, as Python waits for it. The Works are looked at by Python's thread alone.
class PythonStaging {
 public:
  PythonStaging(Staging staging, TensorPlaces places)
      : staging_(std::move(staging)), places_(std::move(places)) {}

  bool wait_staged(std::optional<double> timeout) {
    release_all();
    return wait(staging_.staged(), timeout);
  }
  /// Work on the stream from now on comes behind the copies of the device's tensors.
  void before_update(int device, std::uint64_t stream) {
    const nb::gil_scoped_release release;
    staging_.before_update({device_of(device), {stream}});
  }
  [[nodiscard]] bool on_cpu() const { return places_.cpu; }
  [[nodiscard]] std::vector<int> cuda_devices() const {
    return {places_.cuda.begin(), places_.cuda.end()};
  }
  bool staged_ready() { return staging_.staged().ready(); }
  bool outcome_ready() { return staging_.outcome().ready(); }
  /// None at the timeout. Asked again, the same.
  std::optional<std::string> outcome(std::optional<double> timeout) {
    if (!outcome_) {
      if (!wait(staging_.outcome(), timeout)) return std::nullopt;
      outcome_ = std::string(to_string(staging_.outcome().get()));
    }
    return outcome_;
  }
  std::optional<std::string> persisted(std::optional<double> timeout) {
    if (!persisted_) {
      if (!wait(staging_.persisted(), timeout)) return std::nullopt;
      persisted_ = std::string(to_string(staging_.persisted().get()));
    }
    return persisted_;
  }
  [[nodiscard]] std::uint64_t step() const { return staging_.step(); }

 private:
  template <class T>
  static bool wait(Work<T>& work, std::optional<double> timeout) {
    return wait_in_slices(deadline_of(timeout),
                          [&work](Deadline slice) { return wait_slice(work, slice); });
  }
  Staging staging_;
  TensorPlaces places_;
  std::optional<std::string> outcome_, persisted_;
};

/// A Checkpointer whose calls are made on a thread of their own.
class PythonCheckpointer {
  // What a signal made Python leave goes on, and must find it: calls share it.
  struct Inner {
    std::optional<Checkpointer> ckpt;
    Checkpointer& get() {
      if (!ckpt) throw InvalidState("this Checkpointer was never made, or is closed");
      return *ckpt;
    }
  };

  template <class F>
  auto call(F f) {
    check_here();
    return caller_->call([inner = inner_, f = std::move(f)] { return f(inner->get()); });
  }

 public:
  /// `kinds`: null unless the job may have any number of ranks.
  PythonCheckpointer(CheckpointerOptions options, const std::shared_ptr<LogQueue>& log,
                     std::shared_ptr<PlainKinds> kinds)
      : kinds_(std::move(kinds)), log_(log) {
    if (kinds_) options.any_world = any_world_options(kinds_);
    options.log = [log](const LogLine& line) { log->push(line); };
    caller_->call([inner = inner_, options = std::move(options)]() mutable {
      inner->ckpt.emplace(std::move(options));
    });
  }
  PythonCheckpointer(const PythonCheckpointer&) = delete;
  PythonCheckpointer& operator=(const PythonCheckpointer&) = delete;
  ~PythonCheckpointer() {
    if (caller_->busy()) return;
    const nb::gil_scoped_release release;
    inner_.reset();
  }

  nb::tuple recover(nb::handle state, nb::handle foreign, KindNames of_state) {
    check_here();
    release_all();
    const Value value = read_tree(state, foreign);
    const Dict* dict = value.get_if<Dict>();
    if (dict == nullptr) throw InvalidArgument("the state is not a dict");
    const Recovered got = caller_->call(
        [inner = inner_, into = *dict, kinds = kinds_, of_state = std::move(of_state)]() mutable {
          if (kinds) kinds->set_of_state(of_state);
          return inner->get().recover(into);
        });
    static_cast<void>(write_tree(state, value));  // a dict, in place
    if (kinds_) {  // collective, so also where the user has named nothing
      call([of = *dict, kinds = kinds_, log = log_, got](Checkpointer& ckpt) {
        check_names(*kinds, of, got, *ckpt.group(), *log);
      });
    }
    return nb::make_tuple(got.step, std::string(to_string(got.source)).c_str(), got.from_rank,
                          got.generation, got.old_world_size);
  }
  PythonStaging stage(nb::handle state, std::uint64_t step, nb::handle foreign) {
    check_here();
    release_all();
    TensorPlaces places;
    const Value value = read_tree(state, foreign, &places);
    const Dict* dict = value.get_if<Dict>();
    if (dict == nullptr) throw InvalidArgument("the state is not a dict");
    return {caller_->call(
                [inner = inner_, from = *dict, step] { return inner->get().stage(from, step); }),
            std::move(places)};
  }
  /// A job of other ranks may have had what its user has named: then a warning is all there is.
  static void check_names(const PlainKinds& kinds, const Dict& state, const Recovered& recovered,
                          ProcessGroup& group, LogQueue& log) {
    const auto absent = absent_everywhere(kinds, state, group);
    if (!absent.empty()) collectives::leave_together(group, Deadline::never());
    for (const auto& path : absent) {
      const std::string what = "any_world names '" + path + "', which no rank's state has";
      // The same number of ranks had the same paths, whatever their cut.
      const bool same = recovered.old_world_size == 0 || recovered.old_world_size == group.size();
      if (same) throw make_error<InvalidArgument>(what, {}, {}, path);
      if (group.rank() == 0) log.push({LogLine::Level::kWarning, what});
    }
  }
  void rejoin() {
    call([](Checkpointer& ckpt) { ckpt.rejoin(); });
  }
  void finish() {
    call([](Checkpointer& ckpt) { ckpt.finish(); });
  }
  void tell_waiting() {
    call([](Checkpointer& ckpt) { ckpt.tell_waiting(); });
  }
  void persist_now() {
    call([](Checkpointer& ckpt) { ckpt.persist_now(); });
  }
  void request_termination() {
    call([](Checkpointer& ckpt) { ckpt.request_termination(); });
  }
  /// group() throws the loss, once the generation has ended.
  void throw_if_lost() {
    call([](Checkpointer& ckpt) { (void)ckpt.group(); });
  }
  bool ending() {
    return call([](Checkpointer& ckpt) { return ckpt.ending(); });
  }
  std::uint64_t generation() {
    return call([](Checkpointer& ckpt) { return ckpt.generation(); });
  }
  int rank() {
    return call([](Checkpointer& ckpt) { return ckpt.rank(); });
  }
  int world_size() {
    return call([](Checkpointer& ckpt) { return ckpt.world_size(); });
  }
  std::string job() {
    return call([](Checkpointer& ckpt) { return ckpt.job(); });
  }
  void barrier() {
    call([](Checkpointer& ckpt) { collectives::barrier(*ckpt.group()); });
  }
  void all_reduce(nb::handle array, const std::string& op, nb::handle foreign) {
    check_here();
    const Tensor tensor = writable_tensor(array, foreign);
    const auto element = element_of(tensor.dtype());
    const auto reduce = op_of(op);
    call([tensor, element, reduce](Checkpointer& ckpt) {
      collectives::all_reduce(*ckpt.group(), {tensor.first_byte(), tensor.nbytes()}, element,
                              reduce);
    });
  }
  void broadcast(nb::handle array, int root, nb::handle foreign) {
    check_here();
    const Tensor tensor = writable_tensor(array, foreign);
    call([tensor, root](Checkpointer& ckpt) {
      collectives::broadcast(*ckpt.group(), {tensor.first_byte(), tensor.nbytes()}, root);
    });
  }
  nb::dict stats() {
    const Stats s = call([](Checkpointer& ckpt) { return ckpt.stats(); });
    nb::dict d;
    d["complete"] = s.complete;
    d["failed"] = s.failed;
    d["skipped"] = s.skipped;
    d["persisted"] = s.persisted;
    d["persist_failed"] = s.persist_failed;
    d["stage_seconds"] = s.stage_seconds;
    d["replicate_seconds"] = s.replicate_seconds;
    d["persist_seconds"] = s.persist_seconds;
    d["complete_step"] = s.complete_step;
    d["disk_step"] = s.disk_step;
    d["page_locked_bytes"] = s.page_locked_bytes;
    d["image_bytes"] = s.image_bytes;
    d["vault_bytes"] = s.vault_bytes;
    d["replica_bytes_sent"] = s.replica_bytes_sent;
    d["replica_bytes_borrowed"] = s.replica_bytes_borrowed;
    d["replica_bytes_kept"] = s.replica_bytes_kept;
    d["connections"] = s.connections;
    d["recovery_connections"] = s.recovery_connections;
    return d;
  }
  /// Destroys the Checkpointer; its vault stays unless finish() was called.
  void close() {
    if (!inner_ || !origin_.is_here()) return;
    caller_->call([inner = inner_] { inner->ckpt.reset(); });
    inner_.reset();
    release_all();
  }
  [[nodiscard]] bool here() const { return origin_.is_here(); }

 private:
  void check_here() const {
    if (!origin_.is_here()) {
      throw InvalidState("a process that forked from the one that made this Checkpointer uses it");
    }
    if (!inner_) throw InvalidState("this Checkpointer is closed");
  }
  static Tensor writable_tensor(nb::handle array, nb::handle foreign) {
    const Value value = read_tree(array, foreign);
    const Tensor* tensor = value.get_if<Tensor>();
    if (tensor == nullptr || !tensor->is_contiguous() || !tensor->device().is_cpu() ||
        tensor->storage().traits().read_only) {
      throw InvalidArgument("what is reduced is no contiguous, writable array on the CPU");
    }
    return *tensor;
  }

  const ProcessOrigin origin_;
  std::shared_ptr<PlainKinds> kinds_;
  std::shared_ptr<LogQueue> log_;
  std::shared_ptr<Inner> inner_ = std::make_shared<Inner>();
  std::unique_ptr<Caller, EndIdle> caller_{new Caller};
};

std::optional<RankEnvironment> environment_of(std::optional<int> rank,
                                              std::optional<int> world_size) {
  if (!rank && !world_size) return std::nullopt;
  if (!rank || !world_size) throw InvalidArgument("rank and world_size go together");
  RankEnvironment environment = RankEnvironment::detect();
  environment.rank = environment.local_rank = *rank;
  environment.world_size = environment.local_world_size = *world_size;
  environment.source = "meshstage";
  environment.local_size_known = false;
  return environment;
}

}  // namespace

void bind_checkpointer(nb::module_& module) {
  nb::class_<PythonLog>(module, "LogQueue")
      .def(nb::init<>())
      .def("close", [](PythonLog& log) { log.queue->close(); })
      .def(
          "pop",
          [](PythonLog& log) -> std::optional<std::pair<bool, std::string>> {
            const auto line = log.queue->pop();
            if (!line) return std::nullopt;
            return std::pair{line->level == LogLine::Level::kWarning, line->text};
          },
          "Whether it is a warning, and the text; None at the end. Not on the main thread.");

  const auto timeout = nb::arg("timeout") = nb::none();
  nb::class_<PythonStaging>(module, "Staging")
      .def("wait_staged", &PythonStaging::wait_staged, timeout)
      .def("before_update", &PythonStaging::before_update, nb::arg("device"), nb::arg("stream"))
      .def_prop_ro("on_cpu", &PythonStaging::on_cpu)
      .def_prop_ro("cuda_devices", &PythonStaging::cuda_devices)
      .def("staged_ready", &PythonStaging::staged_ready)
      .def("outcome_ready", &PythonStaging::outcome_ready)
      .def("outcome", &PythonStaging::outcome, timeout)
      .def("persisted", &PythonStaging::persisted, timeout)
      .def_prop_ro("step", &PythonStaging::step);

  nb::class_<PythonCheckpointer>(module, "Checkpointer")
      .def(
          "__init__",
          [](PythonCheckpointer* self, const PythonLog& log, std::string job,
             const std::string& directory, const std::string& vault_directory, double deadline,
             double forming_deadline, std::uint64_t persist_every, std::size_t keep,
             std::uint64_t block_bytes, const std::string& when_busy,
             std::vector<std::vector<int>> holders, std::string store, const std::string& trace,
             const std::string& metrics, bool verify_source, unsigned connections,
             unsigned recovery_connections, const std::optional<KindNames>& any_world,
             std::optional<int> rank, std::optional<int> world_size) {
            release_all();
            CheckpointerOptions options;
            options.job = std::move(job);
            options.directory = directory;
            options.vault_directory = vault_directory;
            options.deadline = milliseconds(deadline);
            options.forming_deadline = milliseconds(forming_deadline);
            options.persist_every = persist_every;
            options.keep = keep;
            options.block_bytes = block_bytes;
            options.when_busy = when_busy_of(when_busy);
            options.holders = std::move(holders);
            options.store = std::move(store);
            options.trace = trace;
            options.metrics = metrics;
            options.verify_source = verify_source;
            options.connections = connections;
            options.recovery_connections = recovery_connections;
            options.environment = environment_of(rank, world_size);
            new (self)
                PythonCheckpointer(std::move(options), log.queue,
                                   any_world ? std::make_shared<PlainKinds>(*any_world) : nullptr);
          },
          nb::arg("log"), nb::kw_only(), nb::arg("job"), nb::arg("directory"),
          nb::arg("vault_directory"), nb::arg("deadline"), nb::arg("forming_deadline"),
          nb::arg("persist_every"), nb::arg("keep"), nb::arg("block_bytes"), nb::arg("when_busy"),
          nb::arg("holders"), nb::arg("store"), nb::arg("trace"), nb::arg("metrics"),
          nb::arg("verify_source"), nb::arg("connections"), nb::arg("recovery_connections"),
          nb::arg("any_world").none(), nb::arg("rank").none(), nb::arg("world_size").none())
      .def("recover", &PythonCheckpointer::recover, nb::arg("state"), nb::arg("foreign").none(),
           nb::arg("kinds"))
      .def("stage", &PythonCheckpointer::stage, nb::arg("state"), nb::arg("step"),
           nb::arg("foreign").none())
      .def("rejoin", &PythonCheckpointer::rejoin)
      .def("finish", &PythonCheckpointer::finish)
      .def("tell_waiting", &PythonCheckpointer::tell_waiting)
      .def("persist_now", &PythonCheckpointer::persist_now)
      .def("request_termination", &PythonCheckpointer::request_termination)
      .def("throw_if_lost", &PythonCheckpointer::throw_if_lost)
      .def("ending", &PythonCheckpointer::ending)
      .def("generation", &PythonCheckpointer::generation)
      .def("rank", &PythonCheckpointer::rank)
      .def("world_size", &PythonCheckpointer::world_size)
      .def("job", &PythonCheckpointer::job)
      .def("barrier", &PythonCheckpointer::barrier)
      .def("all_reduce", &PythonCheckpointer::all_reduce, nb::arg("array"), nb::arg("op"),
           nb::arg("foreign").none())
      .def("broadcast", &PythonCheckpointer::broadcast, nb::arg("array"), nb::arg("root"),
           nb::arg("foreign").none())
      .def("stats", &PythonCheckpointer::stats)
      .def("close", &PythonCheckpointer::close)
      .def("here", &PythonCheckpointer::here, "False in a forked child.");
}

}  // namespace meshstage::python
