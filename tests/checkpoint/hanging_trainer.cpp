// A trainer of three ranks, of which rank 1 hangs in its first life. It prints "sum 48".
// usage: hanging_trainer DIRECTORY HOW WHERE [FORMING]
//   HOW      stop: the whole process stops. wait: the trainer's thread waits until rank 0 has
//            waited for rank 1 for 12 s, while the engine's threads go on.
//   WHERE    the number of a step, "recovered", or a point of the protocol.
//   FORMING  the forming deadline in seconds.
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <exception>
#include <iostream>
#include <span>
#include <string>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/comm/collectives.hpp>

namespace {

namespace ms = meshstage;

constexpr std::uint64_t kSteps = 8;

class Hang {
 public:
  Hang(const std::string& directory, std::string how, std::string where)
      : once_(directory + "/hung"),
        wake_(directory + "/wake"),
        how_(std::move(how)),
        where_(std::move(where)) {}

  /// Hangs if this is the place, and nobody has hung before.
  void pass(int rank, std::string_view place) const {
    if (rank != 1 || place != where_ || ::mkdir(once_.c_str(), 0700) != 0) return;
    if (how_ == "stop") {
      ::kill(::getpid(), SIGSTOP);
      return;
    }
    const int reader = ::open(wake_.c_str(), O_RDONLY | O_CLOEXEC);  // a pipe: waits for a writer
    if (reader >= 0) ::close(reader);
    std::cout << "woke up\n" << std::flush;
  }

  void wake() const {
    const int writer = ::open(wake_.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (writer >= 0) ::close(writer);
  }

 private:
  const std::string once_, wake_, how_, where_;
};

void train(const std::string& directory, const Hang& hang, std::chrono::seconds forming) {
  ms::CheckpointerOptions options;
  options.directory = directory + "/files";
  options.vault_directory = directory + "/vault";
  options.deadline = std::chrono::seconds(2);
  options.forming_deadline = forming;
  options.block_bytes = 4096;
  const int rank = ms::RankEnvironment::detect().rank;
  options.log = [&](const ms::LogLine& line) {
    constexpr std::string_view kWaiting = "waiting for ranks 1 of 3; ";
    const auto at = line.text.find(kWaiting);
    if (rank != 0 || at == std::string::npos) return;
    // Told after 2, 12, 22 s, or a little later.
    if (std::stoi(line.text.substr(at + kWaiting.size())) >= 10) hang.wake();
  };
  options.observer = [&](const ms::PointEvent& event) { hang.pass(rank, event.name); };
  ms::Checkpointer ckpt(std::move(options));
  ms::Tensor sum = ms::Tensor::zeros({1}, ms::DType::kF32);
  ms::Dict state{{"sum", sum}};
  const auto body = [&](ms::RunStep& step) {
    hang.pass(rank, std::to_string(step.number()));
    float add = static_cast<float>(rank + 1);
    ms::collectives::all_reduce(step.group(), std::span(&add, 1), ms::collectives::ReduceOp::kSum);
    sum.data<float>()[0] += add;
  };
  ms::RunOptions run;
  run.recovered = [&](const ms::Recovered&) { hang.pass(rank, "recovered"); };
  ckpt.run(state, kSteps, body, run);
  std::cout << "sum " << sum.data<float>()[0] << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  constexpr int kUsualForming = 300;
  try {
    train(argv[1], Hang(argv[1], argv[2], argv[3]),
          std::chrono::seconds(argc > 4 ? std::stoi(argv[4]) : kUsualForming));
    return 0;
  } catch (const std::exception& e) {
    std::cout << e.what() << "\n";
    return 1;
  }
}
