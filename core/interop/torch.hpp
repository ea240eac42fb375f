#pragma once
// For trainers that use LibTorch: include this beside <torch/torch.h> and link LibTorch yourself.
//
//   auto model = std::make_shared<Net>();
//   torch::optim::AdamW optimizer(model->parameters(), 1e-3);
//   ms::Dict state{{"model", ms::torch::dict(*model)}, {"optimizer", ms::torch::dict(optimizer)}};
//   auto step = ckpt.recover(state).step;       // into the model and the optimizer, in place
//   ...
//   last = ckpt.stage(state, step);
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/torch.h>

#include <meshstage/core/error/error.hpp>
#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::torch {

/// Both throw InvalidArgument for a type that the other library lacks (quantized types, F8_E8M0).
[[nodiscard]] inline DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kBool:
      return DType::kBool;
    case at::kByte:
      return DType::kU8;
    case at::kChar:
      return DType::kI8;
    case at::kUInt16:
      return DType::kU16;
    case at::kShort:
      return DType::kI16;
    case at::kUInt32:
      return DType::kU32;
    case at::kInt:
      return DType::kI32;
    case at::kUInt64:
      return DType::kU64;
    case at::kLong:
      return DType::kI64;
    case at::kFloat8_e4m3fn:
      return DType::kF8E4M3;
    case at::kFloat8_e5m2:
      return DType::kF8E5M2;
    case at::kHalf:
      return DType::kF16;
    case at::kBFloat16:
      return DType::kBF16;
    case at::kFloat:
      return DType::kF32;
    case at::kDouble:
      return DType::kF64;
    case at::kComplexFloat:
      return DType::kC64;
    case at::kComplexDouble:
      return DType::kC128;
    default:
      throw InvalidArgument(std::string("no dtype is LibTorch's ") + at::toString(type));
  }
}
[[nodiscard]] inline at::ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return at::kBool;
    case DType::kU8:
      return at::kByte;
    case DType::kI8:
      return at::kChar;
    case DType::kU16:
      return at::kUInt16;
    case DType::kI16:
      return at::kShort;
    case DType::kU32:
      return at::kUInt32;
    case DType::kI32:
      return at::kInt;
    case DType::kU64:
      return at::kUInt64;
    case DType::kI64:
      return at::kLong;
    case DType::kF8E4M3:
      return at::kFloat8_e4m3fn;
    case DType::kF8E5M2:
      return at::kFloat8_e5m2;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kF32:
      return at::kFloat;
    case DType::kF64:
      return at::kDouble;
    case DType::kC64:
      return at::kComplexFloat;
    case DType::kC128:
      return at::kComplexDouble;
  }
  throw InvalidArgument("not a dtype");
}

/// Makes tensors of each library that are views of the other's memory: nothing is copied, and
/// either side keeps the memory alive. Tensors that share a storage in one library share one in the
/// other if the same Converter makes them. A tensor converted there and back has its old storage
/// again. CPU only.
/// If a LibTorch storage is resized, or if a tensor gets another storage (set_data, Module::to),
/// convert the tensor again.
/// Threads: one at a time.
class Converter {
 public:
  /// Throws InvalidArgument for a tensor that is not a dense CPU tensor, or has a lazy conjugate or
  /// negative bit.
  [[nodiscard]] Tensor from(const at::Tensor& tensor) {
    if (!tensor.defined()) throw InvalidArgument("an undefined LibTorch tensor");
    if (tensor.layout() != at::kStrided || !tensor.device().is_cpu()) {
      throw InvalidArgument("a LibTorch tensor on " + tensor.device().str() +
                            (tensor.layout() == at::kStrided ? "" : ", not strided") +
                            ": dense CPU tensors can be viewed");
    }
    if (tensor.is_conj() || tensor.is_neg()) {
      throw InvalidArgument(
          "a LibTorch tensor with a lazy conjugate or negative: resolve_conj(), "
          "resolve_neg() first");
    }
    const auto known = tensors_.find(tensor.unsafeGetTensorImpl());
    if (known != tensors_.end() && known->second.first.use_count() > 0 &&
        same(known->second.second, tensor)) {
      return known->second.second;
    }
    Tensor made =
        Tensor::on_storage(storage_of(tensor), dtype_of(tensor.scalar_type()), tensor.sizes().vec(),
                           tensor.strides().vec(), tensor.storage_offset());
    tensors_.insert_or_assign(tensor.unsafeGetTensorImpl(),
                              std::pair{WeakTensor(tensor.getIntrusivePtr()), made});
    return made;
  }

  /// Throws InvalidArgument for a tensor that is not on the CPU, InvalidState for read-only memory
  /// (LibTorch has no such thing).
  [[nodiscard]] at::Tensor to(const Tensor& tensor) {
    if (!tensor.device().is_cpu()) throw InvalidArgument("a tensor that is not on the CPU");
    if (tensor.storage().traits().read_only) {
      throw InvalidState("a read-only tensor: clone() it first");
    }
    auto made = at::empty({0}, at::TensorOptions().dtype(scalar_type_of(tensor.dtype())));
    made.set_(c10::Storage(impl_of(tensor.storage())), tensor.storage_offset(), tensor.shape(),
              tensor.strides());
    return made;
  }

 private:
  using Impl = c10::StorageImpl;
  using WeakImpl = c10::weak_intrusive_ptr<Impl>;
  using WeakTensor = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

  static bool same(const Tensor& made, const at::Tensor& tensor) {
    return made.storage().data() == tensor.storage().data() &&
           made.storage().nbytes() == tensor.storage().nbytes() &&
           made.dtype() == dtype_of(tensor.scalar_type()) && tensor.sizes() == made.shape() &&
           tensor.strides() == made.strides() && tensor.storage_offset() == made.storage_offset();
  }

  Storage storage_of(const at::Tensor& tensor) {
    Impl* impl = tensor.storage().unsafeGetStorageImpl();
    if (const auto known = storages_.find(impl); known != storages_.end()) {
      Storage storage = known->second.lock();
      if (storage.valid() && storage.data() == impl->data() && storage.nbytes() == impl->nbytes()) {
        return storage;
      }
    }
    const auto owner = std::make_shared<c10::Storage>(tensor.storage());
    Storage storage = Storage::wrap(impl->mutable_data(), impl->nbytes(), owner);
    storages_.insert_or_assign(impl, WeakStorage(storage));
    impls_.insert_or_assign(
        storage.identity(),
        std::pair{WeakStorage(storage), WeakImpl(c10::intrusive_ptr<Impl>::reclaim_copy(impl))});
    return storage;
  }

  c10::intrusive_ptr<Impl> impl_of(const Storage& storage) {
    if (const auto known = impls_.find(storage.identity()); known != impls_.end()) {
      if (auto impl = known->second.second.lock(); impl && impl->data() == storage.data()) {
        return impl;
      }
    }
    auto* keep = new Storage(storage);
    auto impl = c10::make_intrusive<Impl>(
        Impl::use_byte_size_t(), storage.nbytes(),
        at::DataPtr(
            storage.data(), keep, [](void* s) { delete static_cast<Storage*>(s); }, at::kCPU),
        nullptr, /*resizable=*/false);
    impls_.insert_or_assign(storage.identity(), std::pair{WeakStorage(storage), WeakImpl(impl)});
    storages_.insert_or_assign(impl.get(), WeakStorage(storage));
    return impl;
  }

  std::unordered_map<const Impl*, WeakStorage> storages_;
  std::unordered_map<const void*, std::pair<WeakStorage, WeakImpl>> impls_;
  std::unordered_map<const at::TensorImpl*, std::pair<WeakTensor, Tensor>> tensors_;
};

/// One tensor as a view of the other library's memory.
[[nodiscard]] inline Tensor from_torch(const at::Tensor& tensor) {
  return Converter().from(tensor);
}
[[nodiscard]] inline at::Tensor to_torch(const Tensor& tensor) { return Converter().to(tensor); }

/// The parameters and buffers of a module and its children, nested by their names, so that a path
/// reads as in PyTorch's state_dict ("layers.0.weight"). The tensors are views of the module's
/// memory: stage() copies the module's present values, and recover() writes into the module. A
/// tensor that is registered twice is one tensor. Give one Converter to several dicts whose tensors
/// share memory.
/// Buffers are part of the dict. If forward() changes them (BatchNorm's running averages), wait for
/// Staging::staged() before forward(), not only before the optimizer's step. Make a new dict after
/// each call that gives tensors other memory (Module::to, set_data).
[[nodiscard]] inline Dict dict(const ::torch::nn::Module& module, Converter& converter) {
  Dict result;
  for (const auto& item : module.named_parameters(/*recurse=*/false)) {
    if (item.value().defined()) result.set(item.key(), converter.from(item.value()));
  }
  for (const auto& item : module.named_buffers(/*recurse=*/false)) {
    if (item.value().defined()) result.set(item.key(), converter.from(item.value()));
  }
  for (const auto& item : module.named_children()) {
    result.set(item.key(), dict(*item.value(), converter));
  }
  return result;
}
[[nodiscard]] inline Dict dict(const ::torch::nn::Module& module) {
  Converter converter;
  return dict(module, converter);
}

namespace detail {

/// A node whose children are members of another object. Scalars are read when a step is staged and
/// written when a step is recovered; tensors are views.
class FieldsNode final : public Node {
 public:
  explicit FieldsNode(std::string type_name) : type_name_(std::move(type_name)) {}

  void add(const char* name, double& number) { add_scalar(name, number); }
  void add(const char* name, std::int64_t& number) { add_scalar(name, number); }
  void add(const char* name, const Tensor& tensor) {
    fields_.push_back({name, [tensor]() -> Value { return tensor; }, nullptr});
  }

  [[nodiscard]] std::string type_name() const override { return type_name_; }
  [[nodiscard]] std::vector<Child> children() const override {
    std::vector<Child> all;
    for (const auto& field : fields_) all.push_back({field.name, field.get()});
    return all;
  }
  /// The new node has the values, not the object.
  [[nodiscard]] NodePtr rebuild(std::vector<Value> children) const override {
    std::vector<Child> named;
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      named.push_back({fields_[i].name, std::move(children.at(i))});
    }
    return std::make_shared<OpaqueNode>(type_name_, std::move(named), Value());
  }
  bool assign(const std::vector<Value>& children) override {
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      if (fields_[i].set) fields_[i].set(children.at(i));
    }
    return true;
  }

 private:
  struct Field {
    std::string name;
    std::function<Value()> get;
    std::function<void(const Value&)> set;  // null: recovered in place
  };
  template <class Number>
  void add_scalar(const char* name, Number& number) {
    Number* at = &number;
    fields_.push_back({name, [at]() -> Value { return *at; },
                       [at](const Value& value) { *at = value.as<Number>(); }});
  }
  std::string type_name_;
  std::vector<Field> fields_;
};

/// Makes a node for the state of each parameter. State that is missing is first made as the
/// optimizer's own first step() would.
class OptimizerDict {
 public:
  OptimizerDict(::torch::optim::Optimizer& optimizer, Converter& converter)
      : optimizer_(optimizer), converter_(converter) {}

  Dict make() {
    namespace optim = ::torch::optim;
    if (dynamic_cast<optim::AdamW*>(&optimizer_) != nullptr) {
      return make_as<optim::AdamWOptions, optim::AdamWParamState>("torch.AdamW");
    }
    if (dynamic_cast<optim::Adam*>(&optimizer_) != nullptr) {
      return make_as<optim::AdamOptions, optim::AdamParamState>("torch.Adam");
    }
    if (dynamic_cast<optim::SGD*>(&optimizer_) != nullptr) {
      return make_as<optim::SGDOptions, optim::SGDParamState>("torch.SGD");
    }
    if (dynamic_cast<optim::RMSprop*>(&optimizer_) != nullptr) {
      return make_as<optim::RMSpropOptions, optim::RMSpropParamState>("torch.RMSprop");
    }
    if (dynamic_cast<optim::Adagrad*>(&optimizer_) != nullptr) {
      return make_as<optim::AdagradOptions, optim::AdagradParamState>("torch.Adagrad");
    }
    throw InvalidArgument(
        "an optimizer of a type that dict() does not know: AdamW, Adam, SGD, RMSprop and Adagrad "
        "it does; put the tensors of another into a Dict with from_torch()");
  }

 private:
  template <class Options, class State>
  Dict make_as(const std::string& name) {
    List groups;
    Dict states;
    std::int64_t index = 0;
    for (auto& group : optimizer_.param_groups()) {
      auto& options = static_cast<Options&>(group.options());
      auto node = std::make_shared<FieldsNode>(name + ".group");
      add_options(*node, options);
      groups.push_back(NodePtr(std::move(node)));
      for (const auto& parameter : group.params()) {
        auto& slot = optimizer_.state()[parameter.unsafeGetTensorImpl()];
        if (!slot) slot = std::make_unique<State>();
        auto state = std::make_shared<FieldsNode>(name + ".state");
        add_state(*state, static_cast<State&>(*slot), options, parameter);
        states.set(index++, NodePtr(std::move(state)));
      }
    }
    return Dict{{"param_groups", groups}, {"state", states}};
  }

  template <class Options>
  static void add_options(FieldsNode& node, Options& options) {
    node.add("lr", options.lr());
    node.add("weight_decay", options.weight_decay());
    if constexpr (requires { options.betas(); }) {
      node.add("beta1", std::get<0>(options.betas()));
      node.add("beta2", std::get<1>(options.betas()));
    }
    if constexpr (requires { options.momentum(); }) node.add("momentum", options.momentum());
    if constexpr (requires { options.eps(); }) node.add("eps", options.eps());
  }

  void tensor(FieldsNode& node, const char* name, at::Tensor& member, const at::Tensor& like) {
    if (!member.defined()) member = at::zeros_like(like, at::MemoryFormat::Preserve);
    node.add(name, converter_.from(member));
  }

  template <class Options, class State>
  void add_state(FieldsNode& node, State& state, Options& options, const at::Tensor& parameter) {
    const ::torch::NoGradGuard no_grad;
    if constexpr (requires { state.step(); }) node.add("step", state.step());
    if constexpr (requires { state.exp_avg(); }) {
      tensor(node, "exp_avg", state.exp_avg(), parameter);
      tensor(node, "exp_avg_sq", state.exp_avg_sq(), parameter);
      if (options.amsgrad()) {
        tensor(node, "max_exp_avg_sq", state.max_exp_avg_sq(), parameter);
      }
    } else if constexpr (std::is_same_v<State, ::torch::optim::SGDParamState>) {
      if (options.momentum() == 0) return;
      if (!state.momentum_buffer().defined() && options.dampening() != 0) {
        throw InvalidArgument(
            "SGD with momentum and dampening begins with the first gradient, which is not there "
            "yet: call dict() after the first step()");
      }
      tensor(node, "momentum_buffer", state.momentum_buffer(), parameter);
    } else if constexpr (std::is_same_v<State, ::torch::optim::RMSpropParamState>) {
      tensor(node, "square_avg", state.square_avg(), parameter);
      if (options.momentum() > 0) {
        tensor(node, "momentum_buffer", state.momentum_buffer(), parameter);
      }
      if (options.centered()) tensor(node, "grad_avg", state.grad_avg(), parameter);
    } else {
      tensor(node, "sum", state.sum(), parameter);
    }
  }

  ::torch::optim::Optimizer& optimizer_;
  Converter& converter_;
};

}  // namespace detail

/// The state of an optimizer (AdamW, Adam, SGD, RMSprop, Adagrad): {"param_groups": options that
/// schedules change, "state": by the number of the parameter}. Tensors are views of the optimizer's
/// memory; numbers (steps, learning rates) are read when a step is staged and written when a step
/// is recovered. State that the optimizer's first step() would make is made now, as zeros, so that
/// a process that has just started can recover into it. The dict refers to the optimizer, which
/// must outlive the dict, and to the optimizer's state, which must not be replaced (load(),
/// clear()).
/// Throws InvalidArgument for another optimizer.
[[nodiscard]] inline Dict dict(::torch::optim::Optimizer& optimizer, Converter& converter) {
  return detail::OptimizerDict(optimizer, converter).make();
}
[[nodiscard]] inline Dict dict(::torch::optim::Optimizer& optimizer) {
  Converter converter;
  return dict(optimizer, converter);
}

}  // namespace meshstage::torch
