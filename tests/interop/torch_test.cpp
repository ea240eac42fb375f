// LibTorch's tensors, modules and optimizers as state dicts.
#include <meshstage/core/interop/torch.hpp>

#include <meshstage/core/checkpoint/checkpointer.hpp>
#include <meshstage/core/tree/compare.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/in_process_job.hpp"

namespace ms = meshstage;
using Catch::Matchers::Contains;

namespace {

struct Net : torch::nn::Module {
  Net() {
    embedding = register_module("embedding", torch::nn::Linear(4, 6));
    norm = register_module("norm", torch::nn::BatchNorm1d(6));
    layers = register_module("layers", torch::nn::Sequential(torch::nn::Linear(6, 6)));
    head = register_module("head", torch::nn::Linear(6, 4));
    tied = register_parameter("tied", embedding->weight);
  }
  torch::Tensor forward(const torch::Tensor& x) {
    return head->forward(layers->forward(torch::relu(norm->forward(embedding->forward(x)))));
  }
  torch::nn::Linear embedding{nullptr}, head{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Sequential layers{nullptr};
  torch::Tensor tied;
};

using Maker = std::unique_ptr<torch::optim::Optimizer> (*)(std::vector<torch::Tensor>);

template <class Optimizer, class Options>
std::unique_ptr<torch::optim::Optimizer> make(std::vector<torch::Tensor> parameters,
                                              Options options) {
  return std::make_unique<Optimizer>(std::move(parameters), options);
}

struct Kind {
  const char* name;
  Maker make;
};
const std::vector<Kind> kKinds{
    {"AdamW",
     [](std::vector<torch::Tensor> p) {
       return make<torch::optim::AdamW>(p, torch::optim::AdamWOptions(0.01).amsgrad(true));
     }},
    {"Adam",
     [](std::vector<torch::Tensor> p) {
       return make<torch::optim::Adam>(p, torch::optim::AdamOptions(0.01));
     }},
    {"SGD",
     [](std::vector<torch::Tensor> p) {
       return make<torch::optim::SGD>(p, torch::optim::SGDOptions(0.01).momentum(0.9));
     }},
    {"RMSprop",
     [](std::vector<torch::Tensor> p) {
       return make<torch::optim::RMSprop>(
           p, torch::optim::RMSpropOptions(0.01).momentum(0.5).centered(true));
     }},
    {"Adagrad", [](std::vector<torch::Tensor> p) {
       return make<torch::optim::Adagrad>(p, torch::optim::AdagradOptions(0.01));
     }}};

// A model and its optimizer, trained a step at a time.
struct Trainer {
  explicit Trainer(Maker maker, std::uint64_t seed) {
    torch::manual_seed(seed);
    model = std::make_shared<Net>();
    optimizer = maker(model->parameters());
  }
  ms::Dict state() {
    return ms::Dict{{"model", ms::torch::dict(*model)}, {"optimizer", ms::torch::dict(*optimizer)}};
  }
  double step(int n) {
    const auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(n));
    const auto x = torch::randn({5, 4}, generator);
    optimizer->zero_grad();
    const auto loss = torch::mse_loss(model->forward(x), x.flip(1));
    loss.backward();
    optimizer->step();
    optimizer->param_groups()[0].options().set_lr(0.01 / (1 + n));  // a schedule
    return loss.item<double>();
  }
  std::shared_ptr<Net> model;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
};

}  // namespace

TEST_CASE("tensors go both ways with their storage, strides and dtype, and nothing is copied") {
  ms::torch::Converter converter;
  const auto base = torch::arange(24, torch::kFloat).view({4, 6});
  const auto view = base.slice(1, 1, 4).t();
  const auto a = converter.from(base);
  const auto b = converter.from(view);
  CHECK(a.storage() == b.storage());
  CHECK(b.shape() == ms::Shape{3, 4});
  CHECK(b.strides() == ms::Strides{1, 6});
  CHECK(b.storage_offset() == 1);
  CHECK(b.to_vector<float>()[1] == 7);
  base[0][1] = 100;
  CHECK(b.data<float>()[0] == 100);
  CHECK(converter.from(base).identity() == a.identity());  // one object, however often
  const auto back = converter.to(b);
  CHECK(back.is_alias_of(base));
  CHECK(back.equal(view));

  const auto ours = ms::Tensor::arange<std::int64_t>(12).view({3, 4});
  const auto theirs = converter.to(ours);
  const auto row = converter.to(ours.select(0, 1));
  CHECK(theirs.sizes() == std::vector<std::int64_t>{3, 4});
  CHECK(row.is_alias_of(theirs));
  row[0] = 77;
  CHECK(ours.data<std::int64_t>()[4] == 77);
  CHECK(converter.from(theirs).storage() == ours.storage());
  // Memory that only the other side still holds.
  at::Tensor kept;
  {
    const auto gone = ms::Tensor::full<float>({2}, 5);
    kept = ms::torch::to_torch(gone);
  }
  CHECK(kept[1].item<float>() == 5);
  ms::Tensor held;
  {
    const auto gone = torch::full({2}, 6.0);
    held = ms::torch::from_torch(gone);
  }
  CHECK(held.to_vector<float>() == std::vector<float>{6, 6});
}

TEST_CASE("every dtype of a tensor is the other library's, and back") {
  for (int i = 0; i < static_cast<int>(ms::kDTypeCount); ++i) {
    const auto dtype = static_cast<ms::DType>(i);
    INFO(ms::to_string(dtype));
    const auto tensor = ms::torch::to_torch(ms::Tensor::zeros({3}, dtype));
    CHECK(tensor.element_size() == static_cast<std::int64_t>(ms::size_of(dtype)));
    CHECK(ms::torch::from_torch(tensor).dtype() == dtype);
  }
}

TEST_CASE("what cannot be viewed is refused by name") {
  const auto why = [](const at::Tensor& tensor) -> std::string {
    try {
      (void)ms::torch::from_torch(tensor);
    } catch (const ms::InvalidArgument& e) {
      return e.what();
    }
    return "";
  };
  CHECK_THAT(why({}), Contains("undefined"));
  CHECK_THAT(why(torch::eye(3).to_sparse()), Contains("not strided"));
  CHECK_THAT(why(torch::ones({2}, torch::kComplexFloat).conj()), Contains("resolve_conj"));
  CHECK_THAT(why(torch::empty({2}, torch::kMeta)), Contains("meta"));
  torch::optim::LBFGS other({torch::ones({2}, torch::requires_grad())});
  CHECK_THROWS_WITH(ms::torch::dict(other), Contains("AdamW, Adam, SGD, RMSprop and Adagrad"));
}

TEST_CASE("a module's dict has PyTorch's names, is on its memory, and a tied tensor is one") {
  Net net;
  const ms::Value state = ms::torch::dict(net);
  for (const auto& item : net.named_parameters()) {
    INFO(item.key());
    ms::Value value = state;
    for (const auto& part : ms::Path::split(item.key())) value = value.at(part).value();
    CHECK(value.as<ms::Tensor>().storage().data() == item.value().storage().data());
  }
  CHECK(state.at("tied").as<ms::Tensor>().identity() ==
        state.at("embedding").at("weight").as<ms::Tensor>().identity());
  CHECK(state.at("norm").at("num_batches_tracked").as<ms::Tensor>().dtype() == ms::DType::kI64);
}

TEST_CASE(
    "a module and its optimizer are recovered in place, and train on as if nothing happened") {
  for (const auto& kind : kKinds) {
    INFO(kind.name);
    ms::test::InProcessJob job(1);
    std::vector<double> expected;
    {
      Trainer trainer(kind.make, 3);
      ms::Dict state = trainer.state();  // before the optimizer has any of its own
      ms::Checkpointer ckpt(job.options(0));
      CHECK(ckpt.recover(state).step == 0);
      for (int n = 1; n <= 4; ++n) trainer.step(n);
      ckpt.stage(state, 4).outcome().wait();
      for (int n = 5; n <= 8; ++n) expected.push_back(trainer.step(n));
    }
    Trainer trainer(kind.make, 99);  // other weights
    ms::Dict state = trainer.state();
    const auto* memory = trainer.model->tied.data_ptr();
    ms::Checkpointer ckpt(job.options(0));
    CHECK(ckpt.recover(state).step == 4);
    CHECK(trainer.model->tied.data_ptr() == memory);
    CHECK(trainer.optimizer->param_groups()[0].options().get_lr() == 0.01 / 5);
    std::vector<double> seen;
    for (int n = 5; n <= 8; ++n) seen.push_back(trainer.step(n));
    CHECK(seen == expected);
  }
}
