// State dicts as strange as the interfaces allow, from random numbers or from a fuzzer's bytes.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/tensor/tensor.hpp>
#include <meshstage/core/tree/node.hpp>
#include <meshstage/core/tree/value.hpp>

namespace meshstage::test {

/// Draws a state dict: `draw(n)` is a number below n. Small, but for dims and depths.
class RandomState {
 public:
  explicit RandomState(std::function<std::size_t(std::size_t)> draw) : draw_(std::move(draw)) {}

  Value state() { return value(0); }

 private:
  Value value(std::size_t depth) {
    if (depth > 6 || ++values_ > 60) return Value(static_cast<std::int64_t>(draw_(9)));
    switch (draw_(12)) {
      case 0:
        return {};
      case 1:
        return draw_(2) == 0;
      case 2:
        return static_cast<std::int64_t>(draw_(1000)) - 500;
      case 3:
        return 0.25 * static_cast<double>(draw_(100));
      case 4:
        return text();
      case 5:
        return Bytes(draw_(20));
      case 6: {
        List list;
        for (std::size_t i = draw_(4); i > 0; --i) list.push_back(value(depth + 1));
        return kept(list);
      }
      case 7: {
        std::vector<Value> values;
        for (std::size_t i = draw_(4); i > 0; --i) values.push_back(value(depth + 1));
        return kept(Tuple(std::move(values)));
      }
      case 8: {
        std::vector<Node::Child> children;
        for (std::size_t i = draw_(4); i > 0; --i) children.push_back({text(), value(depth + 1)});
        return kept(NodePtr(
            std::make_shared<OpaqueNode>(text(), std::move(children), auxiliary(draw_(8)))));
      }
      case 9: {
        Dict dict;
        for (std::size_t i = draw_(5); i > 0; --i) dict.set(key(), value(depth + 1));
        return kept(dict);
      }
      case 10:
        return met_.empty() ? Value() : met_[draw_(met_.size())];
      default: {
        const auto t = tensor();
        if (draw_(5) != 0) return t;
        Dict attributes;
        attributes.set(key(), value(depth + 1));
        return Value(t, attributes);
      }
    }
  }

  Value kept(Value value) {
    met_.push_back(value);
    return value;
  }

  Value auxiliary(std::size_t depth) {
    if (draw_(30) == 0) depth = draw_(300);  // deep, perhaps too deep
    Value inner = draw_(2) == 0 ? Value(text()) : Value(static_cast<std::int64_t>(draw_(7)));
    for (; depth > 0; --depth) {
      switch (draw_(3)) {
        case 0:
          inner = List{inner, 1.5};
          break;
        case 1:
          inner = Tuple{inner};
          break;
        default:
          inner = Dict{{key(), inner}, {"n", Value()}};
      }
    }
    return inner;
  }

  std::string text() {
    static const std::vector<std::string> kTexts{"",
                                                 "w",
                                                 "a.b",
                                                 "0",
                                                 "-1",
                                                 "%",
                                                 "%@",
                                                 "__metadata__",
                                                 "__meshstage__.root",
                                                 std::string("\0", 1),
                                                 "\xff\xfe",
                                                 "\xc3\xa9",
                                                 "\n\"\\",
                                                 std::string(300, 'n')};
    return kTexts[draw_(kTexts.size())];
  }
  Key key() {
    if (draw_(4) == 0) return Key(static_cast<std::int64_t>(draw_(5)) - 2);
    return draw_(2) == 0 ? Key(text()) : Key("k" + std::to_string(draw_(30)));
  }

  Tensor tensor() {
    if (!tensors_.empty() && draw_(4) == 0) {
      const auto& t = tensors_[draw_(tensors_.size())];
      if (t.dim() == 0 || draw_(3) == 0) return t;
      const auto d = static_cast<std::int64_t>(draw_(t.dim()));
      const auto length = static_cast<std::size_t>(t.size(static_cast<std::size_t>(d)));
      const auto begin = static_cast<std::int64_t>(draw_(length + 1));
      return draw_(2) == 0 ? t.transpose(0, d)
                           : t.narrow(d, begin, static_cast<std::int64_t>(length) - begin);
    }
    Shape shape;
    std::size_t dims = draw_(4);
    if (draw_(15) == 0) dims = 60 + draw_(10);
    if (draw_(60) == 0) dims = 1000 + draw_(50);
    for (std::size_t i = 0; i < dims; ++i)
      shape.push_back(static_cast<std::int64_t>(dims > 4 ? 1 : draw_(5)));
    if (draw_(10) == 0) {  // no element, and other dims as large as counts
      shape.push_back(std::int64_t{1} << (20 + draw_(42)));
      shape.insert(shape.begin() + static_cast<std::ptrdiff_t>(draw_(shape.size() + 1)), 0);
    }
    try {
      tensors_.push_back(Tensor::zeros(shape, static_cast<DType>(draw_(kDTypeCount))));
    } catch (const std::exception&) {  // more elements than 63 bits count
      return Tensor::scalar(1);
    }
    return tensors_.back();
  }

  std::function<std::size_t(std::size_t)> draw_;
  std::vector<Value> met_;
  std::vector<Tensor> tensors_;
  std::size_t values_ = 0;
};

}  // namespace meshstage::test
