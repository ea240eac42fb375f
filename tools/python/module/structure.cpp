#include "structure.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "known_tensors.hpp"

namespace nb = nanobind;

namespace meshstage::python {
namespace {

/// What a Structure may have in it. Everything else is for the slow walk.
struct KnownTypes {
  nb::object atomic;        ///< A set of types whose objects are not copied.
  nb::object tensors;       ///< A set of types.
  nb::object ordered_dict;  ///< A type.
  std::shared_ptr<const TensorLibrary> library;
};

bool in(nb::handle set, nb::handle type) {
  const int found = PySequence_Contains(set.ptr(), type.ptr());
  if (found < 0) throw nb::python_error();
  return found == 1;
}

bool equal(nb::handle a, nb::handle b) {
  if (a.is(b)) return true;
  const int same = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
  if (same < 0) throw nb::python_error();
  return same == 1;
}

enum class Kind { kDict, kOrderedDict, kList, kTuple };

struct Item {
  enum What { kScalar, kTensor, kNode };
  nb::object type;
  What what;
  std::size_t index;  // of the tensor or the node
};

struct Node {
  Kind kind;
  nb::object type;
  std::vector<nb::object> keys;  // of a dict
  std::vector<Item> items;
};

/// What containers have in them, one container after the other.
struct Contents {
  std::vector<nb::object> keys, values;

  void append(nb::handle x, Kind kind) {
    if (kind == Kind::kDict) {
      PyObject* key = nullptr;
      PyObject* value = nullptr;
      for (Py_ssize_t at = 0; PyDict_Next(x.ptr(), &at, &key, &value) != 0;) {
        keys.push_back(nb::borrow(key));
        values.push_back(nb::borrow(value));
      }
    } else if (kind == Kind::kOrderedDict) {  // whose order is not that of the dict that it is
      for (nb::handle item : x.attr("items")()) {
        keys.push_back(item[0]);
        values.push_back(item[1]);
      }
    } else {
      for (nb::handle value : nb::borrow<nb::sequence>(x)) values.push_back(nb::borrow(value));
    }
  }
};

/// What one match has found.
struct Found {
  Contents contents;
  std::vector<std::pair<std::size_t, std::size_t>> begins;  // of each node's keys and values
  std::vector<nb::object> nodes;
  std::vector<nb::handle> tensors;  // which the contents keep
  std::vector<nb::object> made;
};

/// A tree of dicts, lists and tuples with its scalars and tensors, and for each tensor the staged
/// tensor that it became. Threads: those that have the GIL, one at a time.
class Structure {
 public:
  explicit Structure(std::shared_ptr<const KnownTypes> types) : types_(std::move(types)) {}

  /// False if the state has what no Structure knows. `staged` is the state's copy. No container
  /// may be there twice.
  bool compile(nb::handle state, nb::handle staged) {
    std::unordered_set<PyObject*> containers;
    return compile_node(state, staged, containers) && compile_tensors();
  }
  [[nodiscard]] nb::list tensors() const { return list_of(sources_); }
  [[nodiscard]] nb::list staged() const { return list_of(staged_); }

  /// Ends the compilation: results are made of these from now on, one for each tensor.
  void settle(const nb::list& staged) {
    sources_.clear();
    staged_.clear();
    for (nb::handle tensor : staged) staged_.push_back(nb::borrow(tensor));
  }

  /// None if the state is not what was compiled. Otherwise its copy, the tensors of the state, and
  /// the tensors made for them. `copy_attributes(source, copy)` is called for each OrderedDict that
  /// has some.
  nb::object match(nb::handle state, nb::handle copy_attributes) const {
    Found found;
    found.nodes.reserve(nodes_.size());
    found.tensors.reserve(known_.size());
    found.begins.resize(nodes_.size());
    if (!collect(0, state, found) || !distinct(found) || !unchanged(found)) return nb::none();
    make(found);
    const nb::object result = build(0, found, copy_attributes);
    nb::list sources;
    for (nb::handle tensor : found.tensors) sources.append(tensor);
    return nb::make_tuple(result, sources, list_of(found.made));
  }

 private:
  static nb::list list_of(const std::vector<nb::object>& objects) {
    nb::list list;
    for (const auto& object : objects) list.append(object);
    return list;
  }

  bool kind_of(nb::handle type, Kind& kind) const {
    if (type.ptr() == reinterpret_cast<PyObject*>(&PyDict_Type)) {
      kind = Kind::kDict;
    } else if (type.ptr() == reinterpret_cast<PyObject*>(&PyList_Type)) {
      kind = Kind::kList;
    } else if (type.ptr() == reinterpret_cast<PyObject*>(&PyTuple_Type)) {
      kind = Kind::kTuple;
    } else if (type.is(types_->ordered_dict)) {
      kind = Kind::kOrderedDict;
    } else {
      return false;
    }
    return true;
  }

  bool compile_node(nb::handle x, nb::handle copy, std::unordered_set<PyObject*>& containers) {
    Node node;
    node.type = nb::borrow(x.type());
    if (!kind_of(node.type, node.kind) || !containers.insert(x.ptr()).second) return false;
    Contents contents;
    contents.append(x, node.kind);
    for (nb::handle key : contents.keys) {
      if (!in(types_->atomic, key.type())) return false;
    }
    const std::size_t self = nodes_.size();
    nodes_.emplace_back();
    std::vector<std::pair<nb::handle, nb::object>> inner;
    for (std::size_t i = 0; i < contents.values.size(); ++i) {
      const nb::handle value = contents.values[i];
      Item item{nb::borrow(value.type()), Item::kScalar, 0};
      if (!in(types_->atomic, item.type)) {
        const nb::object copied =
            contents.keys.empty() ? nb::object(copy[i]) : nb::object(copy[contents.keys[i]]);
        if (in(types_->tensors, item.type)) {
          item.what = Item::kTensor;
          item.index = sources_.size();
          sources_.push_back(nb::borrow(value));
          staged_.push_back(copied);
        } else {
          item.what = Item::kNode;
          inner.emplace_back(value, copied);
        }
      }
      node.items.push_back(std::move(item));
    }
    auto next = inner.begin();
    for (auto& item : node.items) {
      if (item.what != Item::kNode) continue;
      item.index = nodes_.size();
      if (!compile_node(next->first, next->second, containers)) return false;
      ++next;
    }
    node.keys = std::move(contents.keys);
    nodes_[self] = std::move(node);
    return true;
  }

  bool compile_tensors() {
    std::unordered_map<PyObject*, std::size_t> first;
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      tie_.push_back(first.try_emplace(sources_[i].ptr(), i).first->second);
      if (!known_.add(*types_->library, sources_[i])) return false;
    }
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      if (tie_[i] == i && known_.shares_storage(i)) sharing_.push_back(i);
    }
    return true;
  }

  /// The contents of all containers and the tensors in them, in the order of compile_node.
  bool collect(std::size_t index, nb::handle x, Found& found) const {
    const Node& node = nodes_[index];
    if (!x.type().is(node.type)) return false;
    found.nodes.push_back(nb::borrow(x));
    const std::size_t keys = found.contents.keys.size();
    const std::size_t values = found.contents.values.size();
    found.begins[index] = {keys, values};
    found.contents.append(x, node.kind);
    if (found.contents.keys.size() - keys != node.keys.size() ||
        found.contents.values.size() - values != node.items.size()) {
      return false;
    }
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      if (!equal(found.contents.keys[keys + i], node.keys[i])) return false;
    }
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      const nb::handle value = found.contents.values[values + i];
      const Item& item = node.items[i];
      const bool fits = value.type().is(item.type) ||
                        (item.what == Item::kScalar && in(types_->atomic, value.type()));
      if (!fits) return false;
      if (item.what == Item::kTensor) found.tensors.push_back(value);
    }
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      if (node.items[i].what != Item::kNode) continue;
      const nb::object inner = found.contents.values[values + i];
      if (!collect(node.items[i].index, inner, found)) return false;
    }
    return true;
  }

  /// No container is there twice. Tensors are the same objects where they were, and nowhere else:
  /// only tensors on one storage could be.
  bool distinct(const Found& found) const {
    std::unordered_set<PyObject*> objects;
    for (const auto& node : found.nodes) {
      if (!objects.insert(node.ptr()).second) return false;
    }
    for (const std::size_t i : sharing_) {
      if (!objects.insert(found.tensors[i].ptr()).second) return false;
    }
    for (std::size_t i = 0; i < tie_.size(); ++i) {
      if (!found.tensors[i].is(found.tensors[tie_[i]])) return false;
    }
    return true;
  }

  bool unchanged(const Found& found) const {
    try {
      for (std::size_t i = 0; i < tie_.size(); ++i) {
        if (tie_[i] == i && !known_.is(*types_->library, found.tensors[i], i)) return false;
      }
      return true;
    } catch (nb::python_error& error) {
      if (!error.matches(PyExc_RuntimeError)) throw;
      return false;  // the library's error for a tensor that has no storage
    }
  }

  void make(Found& found) const {
    found.made.reserve(tie_.size());
    for (std::size_t i = 0; i < tie_.size(); ++i) {
      found.made.push_back(tie_[i] == i ? call(types_->library->alias, staged_[i])
                                        : found.made[tie_[i]]);
    }
  }

  nb::object build(std::size_t index, const Found& found, nb::handle copy_attributes) const {
    const Node& node = nodes_[index];
    const auto [keys, values] = found.begins[index];
    std::vector<nb::object> items;
    items.reserve(node.items.size());
    bool same = true;
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      const Item& item = node.items[i];
      if (item.what == Item::kScalar) {
        items.push_back(found.contents.values[values + i]);
      } else {
        items.push_back(item.what == Item::kTensor ? found.made[item.index]
                                                   : build(item.index, found, copy_attributes));
        same = same && items.back().is(found.contents.values[values + i]);
      }
    }
    if (node.kind == Kind::kList) return list_of(items);
    if (node.kind == Kind::kTuple) {
      return same ? found.nodes[index] : nb::object(nb::tuple(list_of(items)));
    }
    nb::object dict = node.kind == Kind::kDict ? nb::object(nb::dict()) : types_->ordered_dict();
    for (std::size_t i = 0; i < items.size(); ++i) {
      const nb::handle key = found.contents.keys[keys + i];
      if (PyObject_SetItem(dict.ptr(), key.ptr(), items[i].ptr()) != 0) throw nb::python_error();
    }
    if (node.kind == Kind::kOrderedDict) {
      const nb::object& source = found.nodes[index];
      if (nb::len(nb::object(source.attr("__dict__"))) != 0) copy_attributes(source, dict);
    }
    return dict;
  }

  std::shared_ptr<const KnownTypes> types_;
  std::vector<Node> nodes_;          // a node comes before those in it
  std::vector<nb::object> sources_;  // until settle()
  std::vector<nb::object> staged_;
  std::vector<std::size_t> tie_;      // the first tensor that is the same object
  std::vector<std::size_t> sharing_;  // tensors on a storage that another tensor has, too
  KnownTensors known_;
};

}  // namespace

void bind_structure(nb::module_& module) {
  nb::class_<KnownTypes>(module, "KnownTypes")
      .def(
          "__init__",
          [](KnownTypes* self, nb::object atomic, nb::object tensors, nb::object ordered_dict,
             std::shared_ptr<const TensorLibrary> library) {
            new (self) KnownTypes{std::move(atomic), std::move(tensors), std::move(ordered_dict),
                                  std::move(library)};
          },
          nb::kw_only(), nb::arg("atomic"), nb::arg("tensors"), nb::arg("ordered_dict"),
          nb::arg("library"));
  nb::class_<Structure>(module, "Structure")
      .def_static(
          "compile",
          [](std::shared_ptr<const KnownTypes> types, nb::handle state, nb::handle staged) {
            auto structure = std::make_unique<Structure>(std::move(types));
            if (!structure->compile(state, staged)) structure.reset();
            return structure;
          },
          nb::arg("types"), nb::arg("state"), nb::arg("staged"))
      .def_prop_ro("tensors", &Structure::tensors)
      .def_prop_ro("staged", &Structure::staged)
      .def("settle", &Structure::settle, nb::arg("staged"))
      .def("match", &Structure::match, nb::arg("state"), nb::arg("copy_attributes").none());
}

}  // namespace meshstage::python
