#include "tools/trainer/state.hpp"

#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <system_error>

#include <meshstage/core/error/error.hpp>
#include <meshstage/dtensor/node.hpp>

#include "tools/trainer/saved_state.hpp"

namespace trainer {
namespace ms = meshstage;
namespace {

// "hidden1.weight" goes to into["hidden1"]["weight"].
void set_nested(ms::Dict& into, const std::string& name, const ms::Value& tensor) {
  const auto dot = name.find('.');
  if (dot == std::string::npos) return into.set(name, tensor);
  const std::string outer = name.substr(0, dot);
  if (!into.contains(outer)) into.set(outer, ms::Dict());
  ms::Dict inner = into.at(outer).as<ms::Dict>();
  set_nested(inner, name.substr(dot + 1), tensor);
}

// Calls visit(path, value) for each leaf below `dict`, in order; of a DTensor, its local tensor.
void each_leaf(const ms::Dict& dict, const std::string& path,
               const std::function<void(const std::string&, const ms::Value&)>& visit) {
  for (const auto& [key, value] : dict) {
    const std::string here = (path.empty() ? "" : path + ".") + ms::Path::escape(key);
    if (const auto* inner = value.get_if<ms::Dict>()) {
      each_leaf(*inner, here, visit);
    } else if (value.get_if<ms::NodePtr>() != nullptr) {
      visit(here, ms::dtensor::from_value(value).to_local());
    } else {
      visit(here, value);
    }
  }
}

std::int64_t as_signed(std::uint64_t bits) { return std::bit_cast<std::int64_t>(bits); }

/// Other ranks have other values.
bool is_own(const std::string& path) {
  return path == "random.state" || path == "history.rank_loss";
}

// The data of what was saved under that path.
std::span<const char> saved(const SavedState& state, const std::string& path, std::size_t bytes) {
  const auto* entry = state.index.find(path);
  if (entry == nullptr || state.data(*entry).size() != bytes) {
    throw ms::CorruptData(path + " was not saved, or has another size");
  }
  return state.data(*entry);
}

}  // namespace

TrainingState::TrainingState(const CharacterModel<float>& model, std::uint64_t steps,
                             std::uint64_t seed, int rank, const Sharding* sharding,
                             ms::Device device) {
  if (!device.is_cpu()) device_.emplace(device);
  ms::Dict parameters;
  ms::Dict exp_avg;
  ms::Dict exp_avg_sq;
  const auto& specs = model.parameters();
  parameter_tensors_ = add_tensors(parameters, What::kParameter, specs, sharding, parameters_);
  add_tensors(exp_avg, What::kMoment, specs, sharding, exp_avg_);
  add_tensors(exp_avg_sq, What::kMoment, specs, sharding, exp_avg_sq_);
  for (const auto& spec : specs) {
    parts_.push_back(sharding != nullptr ? sharding->part(spec.shape)
                                         : Sharding::Part{0, spec.elements});
  }
  const auto count = static_cast<std::int64_t>(steps);
  const ms::Tensor losses = ms::Tensor::zeros({count}, ms::DType::kF32);
  const ms::Tensor rank_losses = ms::Tensor::zeros({count}, ms::DType::kF32);
  losses_ = losses.span<float>();
  rank_losses_ = rank_losses.span<float>();
  dict_ = ms::Dict{
      {"model", parameters},
      {"optimizer", ms::Dict{{"exp_avg", exp_avg}, {"exp_avg_sq", exp_avg_sq}, {"step", 0}}},
      {"random", ms::Dict{{"state", 0}}},
      {"history", ms::Dict{{"loss", placed(losses)}, {"rank_loss", placed(rank_losses)}}},
      {"step", 0}};
  constant_parameters_.assign(parameters_.begin(), parameters_.end());
  model.initialize(parameters_, seed);
  random_ = seed * 0x9E3779B97F4A7C15U + static_cast<std::uint64_t>(rank);
  draw();  // neighbouring seeds and ranks are far apart from here on
  random_ = draw();
  publish();
  write_device();
}

std::vector<ms::Tensor> TrainingState::add_tensors(ms::Dict& into, What what,
                                                   const std::vector<ParameterSpec>& specs,
                                                   const Sharding* sharding,
                                                   std::vector<std::span<float>>& spans) {
  std::vector<ms::Tensor> tensors;
  for (const auto& spec : specs) {
    Sharding::Placed part;
    if (sharding == nullptr) {
      const auto local = ms::Tensor::zeros(spec.shape, ms::DType::kF32);
      part = {placed(local), local};
    } else {
      part = what == What::kMoment ? sharding->moment(spec.shape) : sharding->parameter(spec.shape);
      const auto& distributed = ms::dtensor::from_value(part.value);
      part.value = ms::dtensor::to_value(
          ms::DTensor::from_spec(placed(part.local), distributed.spec(), distributed.rank()));
    }
    tensors.push_back(part.local);
    spans.push_back(part.local.span<float>());
    set_nested(into, spec.name, part.value);
  }
  return tensors;
}

ms::Tensor TrainingState::placed(const ms::Tensor& host) {
  return device_ ? device_->twin(host) : host;
}

void TrainingState::read_device() {
  if (device_) device_->get();
}

void TrainingState::write_device() {
  if (device_) device_->put();
}

ms::TrainerStream TrainingState::trainer_stream() const {
  return device_ ? device_->trainer_stream() : ms::TrainerStream{ms::kCpu};
}

std::uint64_t TrainingState::bytes() const {
  std::uint64_t sum = 0;
  each_leaf(dict_, "", [&](const std::string&, const ms::Value& value) {
    if (const auto* tensor = value.get_if<ms::Tensor>()) sum += tensor->nbytes();
  });
  return sum;
}

std::uint64_t TrainingState::draw() {
  random_ += 0x9E3779B97F4A7C15U;
  std::uint64_t z = random_;
  z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31U);
}

void TrainingState::publish() {
  dict_.set("step", step);
  dict_.at("optimizer").at("step").set(step);
  dict_.at("random").at("state").set(as_signed(random_));
}

void TrainingState::adopt() {
  step = dict_.at("step").as<std::uint64_t>();
  random_ = std::bit_cast<std::uint64_t>(dict_.at("random").at("state").as<std::int64_t>());
}

void TrainingState::save(const std::filesystem::path& file) {
  publish();
  read_device();
  std::string header = "{";
  std::string data;
  each_leaf(dict_, "", [&](const std::string& path, const ms::Value& value) {
    const std::size_t begin = data.size();
    std::string dtype = "I64";
    std::string shape = "[]";
    if (const auto* found = value.get_if<ms::Tensor>()) {
      const ms::Tensor tensor = device_ ? device_->host(*found) : *found;
      dtype = "F32";
      shape = ms::to_string(tensor.shape());
      data.append(reinterpret_cast<const char*>(tensor.first_byte()), tensor.nbytes());
    } else {
      const auto number = value.as<std::int64_t>();
      data.append(reinterpret_cast<const char*>(&number), sizeof number);
    }
    header += (header.size() > 1 ? ",\"" : "\"") + path + R"(":{"dtype":")" + dtype +
              R"(","shape":)" + shape + R"(,"data_offsets":[)" + std::to_string(begin) + "," +
              std::to_string(data.size()) + "]}";
  });
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = header.size();
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << header << data;
  out.close();
  if (!out) throw std::system_error(errno, std::generic_category(), "writing " + file.string());
}

void TrainingState::load(const std::filesystem::path& of_root, const std::filesystem::path& own) {
  const SavedState common(of_root);
  std::optional<SavedState> own_part;
  if (!own.empty()) own_part.emplace(own);
  std::int64_t number = 0;
  const auto read_number = [&number](const SavedState& from, const std::string& path) {
    std::memcpy(&number, saved(from, path, sizeof number).data(), sizeof number);
    return number;
  };
  each_leaf(dict_, "", [&](const std::string& path, const ms::Value& value) {
    const auto* found = value.get_if<ms::Tensor>();
    if (found == nullptr || (is_own(path) && !own_part)) return;
    const ms::Tensor tensor = device_ ? device_->host(*found) : *found;
    const auto data = saved(is_own(path) ? *own_part : common, path, tensor.nbytes());
    std::memcpy(tensor.data<float>(), data.data(), data.size());
  });
  step = static_cast<std::uint64_t>(read_number(common, "step"));
  if (own_part) random_ = std::bit_cast<std::uint64_t>(read_number(*own_part, "random.state"));
  publish();
  write_device();
}

bool is_moment(std::string_view path) {
  return path.starts_with("optimizer.exp_avg.") || path.starts_with("optimizer.exp_avg_sq.");
}

ms::ReshardOptions reshard_options() {
  ms::ReshardOptions options;
  ms::dtensor::register_boxes(options.readers);
  options.plain = [](const std::string& path) {
    return is_own(path) ? ms::PlainKind::kPerRank : ms::PlainKind::kSame;
  };
  return options;
}

}  // namespace trainer
