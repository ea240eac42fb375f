// A small data-parallel LibTorch trainer: gradients are averaged by LibTorch's own Gloo, its state
// is staged, replicated and recovered by meshstage, whose Gloo module is another copy of that
// library. usage: torch_trainer DIRECTORY STEPS SAVE [KILL-AT-STEP]
#include <csignal>
#include <cstdio>
#include <fstream>
#include <string>

#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/interop/torch.hpp>

namespace ms = meshstage;
using namespace std::chrono_literals;

namespace {

struct Net : torch::nn::Module {
  Net() {
    first = register_module("first", torch::nn::Linear(12, 40));
    norm = register_module("norm", torch::nn::BatchNorm1d(40));
    second = register_module("second", torch::nn::Linear(40, 3));
  }
  torch::Tensor forward(const torch::Tensor& x) {
    return second->forward(torch::relu(norm->forward(first->forward(x))));
  }
  torch::nn::Linear first{nullptr}, second{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};

// What this rank learns from at a step: from the step alone, so that a redone step is the same.
torch::Tensor examples(std::uint64_t step, int rank) {
  auto generator = at::detail::createCPUGenerator(1000 * step + static_cast<std::uint64_t>(rank));
  return torch::randn({8, 12}, generator);
}

class Training {
 public:
  Training(std::string directory, std::uint64_t steps, std::uint64_t kill_at)
      : directory_(std::move(directory)), steps_(steps), kill_at_(kill_at) {}

  void run() {
    step_ = checkpointer_.recover(state_).step;
    join();
    while (step_ < steps_) {
      try {
        train();
      } catch (const ms::RejoinNeeded&) {
        recover();
      } catch (const ms::Error&) {
        throw;
      } catch (const std::exception& e) {  // LibTorch's group noticed first
        std::printf("%s\n", e.what());
        recover();
      }
    }
    last_.outcome().wait();
    checkpointer_.finish();
  }

  void save(const std::string& file) const {
    std::ofstream out(file, std::ios::binary);
    const auto write = [&](const torch::Tensor& t) {
      const auto c = t.detach().contiguous();
      out.write(static_cast<const char*>(c.data_ptr()), static_cast<std::streamsize>(c.nbytes()));
    };
    for (const auto& p : model_->parameters()) write(p);
    for (const auto& b : model_->buffers()) write(b);
    for (const auto& p : model_->parameters()) {
      const auto& found = optimizer_.state().at(p.unsafeGetTensorImpl());
      const auto& state = static_cast<const torch::optim::AdamWParamState&>(*found);
      write(state.exp_avg());
      write(state.exp_avg_sq());
      out << state.step() << '\n';
    }
    if (!out.flush()) throw std::runtime_error("cannot write " + file);
  }

 private:
  void join() {
    auto store = c10::make_intrusive<c10d::FileStore>(
        directory_ + "/c10d-" + std::to_string(checkpointer_.generation()),
        checkpointer_.world_size());
    auto options = c10d::ProcessGroupGloo::Options::create(30s);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface("lo"));
    group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store, checkpointer_.rank(),
                                                         checkpointer_.world_size(), options);
  }

  void recover() {
    group_.reset();
    step_ = checkpointer_.rejoin().recover(state_).step;
    std::printf("rank %d goes on from step %llu in generation %llu\n", checkpointer_.rank(),
                static_cast<unsigned long long>(step_),
                static_cast<unsigned long long>(checkpointer_.generation()));
    join();
  }

  void train() {
    const auto x = examples(step_, checkpointer_.rank());
    optimizer_.zero_grad();
    last_.staged().wait();  // here, for forward() changes the buffers of the normalization
    const auto y = x.slice(1, 0, 3) * x.slice(1, 3, 6);
    torch::mse_loss(model_->forward(x), y).backward();
    for (const auto& p : model_->parameters()) {
      std::vector<at::Tensor> gradient{p.grad()};
      group_->allreduce(gradient)->wait();
      gradient[0].div_(checkpointer_.world_size());
    }
    optimizer_.step();
    ++step_;
    if (step_ == kill_at_) std::raise(SIGKILL);
    if (step_ % 3 == 0) last_ = checkpointer_.stage(state_, step_);
  }

  const std::string directory_;
  const std::uint64_t steps_;
  const std::uint64_t kill_at_;
  std::uint64_t step_ = 0;
  std::shared_ptr<Net> model_ = std::make_shared<Net>();
  torch::optim::AdamW optimizer_{model_->parameters(), torch::optim::AdamWOptions(1e-2)};
  ms::Dict state_{{"model", ms::torch::dict(*model_)}, {"optimizer", ms::torch::dict(optimizer_)}};
  ms::Checkpointer checkpointer_{{.job = "torch",
                                  .directory = directory_ + "/disk",
                                  .vault_directory = directory_ + "/vault",
                                  .deadline = 20s,
                                  .forming_deadline = 120s,
                                  .store = "file:" + directory_ + "/store"}};
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
  ms::Staging last_;
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 4)
    throw std::runtime_error("usage: torch_trainer DIRECTORY STEPS SAVE [KILL-AT-STEP]");
  at::set_num_threads(1);
  torch::manual_seed(7);
  Training training(argv[1], std::stoull(argv[2]), argc > 4 ? std::stoull(argv[4]) : 0);
  training.run();
  training.save(argv[3]);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "torch_trainer: %s\n", e.what());
  return 1;
}
