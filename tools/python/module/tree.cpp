#include "tree.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <meshstage/core/tensor/dlpack.hpp>

#include "cuda.hpp"
#include "placed_tensor.hpp"
#include "released.hpp"

namespace nb = nanobind;

namespace meshstage::python {
namespace {

/// What Python's struct module calls an element.
std::optional<DType> dtype_of_format(const char* format, std::size_t itemsize) {
  std::string name = format == nullptr ? "B" : format;
  if (!name.empty() && (name[0] == '@' || name[0] == '=' || name[0] == '<')) name.erase(0, 1);
  if (name == "Zf") return DType::kC64;
  if (name == "Zd") return DType::kC128;
  if (name.size() != 1) return std::nullopt;
  switch (name[0]) {
    case '?':
      return DType::kBool;
    case 'e':
      return DType::kF16;
    case 'f':
      return DType::kF32;
    case 'd':
      return DType::kF64;
    case 'b':
      return DType::kI8;
    case 'B':
      return DType::kU8;
    default:
      break;
  }
  if (std::strchr("hilq", name[0]) != nullptr) {
    if (itemsize == 2) return DType::kI16;
    if (itemsize == 4) return DType::kI32;
    if (itemsize == 8) return DType::kI64;
  }
  if (std::strchr("HILQ", name[0]) != nullptr) {
    if (itemsize == 2) return DType::kU16;
    if (itemsize == 4) return DType::kU32;
    if (itemsize == 8) return DType::kU64;
  }
  return std::nullopt;
}

/// A part of the path, and the one above it: made on the stack, put together for an error.
struct Place {
  const Place* above;
  std::string part;
  [[nodiscard]] std::string text() const {
    if (above == nullptr) return "";
    const std::string prefix = above->text();
    return prefix.empty() ? part : prefix + "." + part;
  }
};

[[noreturn]] void refuse(const Place& place, const std::string& why) {
  const std::string path = place.text();
  throw make_error<InvalidArgument>((path.empty() ? "the state" : "'" + path + "'") + " " + why, {},
                                    {}, path);
}

std::string python_type(nb::handle object) {
  return nb::cast<std::string>(object.type().attr("__name__"));
}

class Reader {
 public:
  Reader(nb::handle foreign, TensorPlaces* places) : foreign_(foreign), places_(places) {}

  Value read(nb::handle x, const Place& place) {
    if (x.is_none()) return {};
    if (PyBool_Check(x.ptr())) return x.is(Py_True);
    if (PyLong_Check(x.ptr())) {
      int overflow = 0;
      const long long number = PyLong_AsLongLongAndOverflow(x.ptr(), &overflow);
      if (overflow != 0) refuse(place, "is an int beyond 64 bits");
      return static_cast<std::int64_t>(number);
    }
    if (PyFloat_Check(x.ptr())) return PyFloat_AsDouble(x.ptr());
    if (PyUnicode_Check(x.ptr())) return nb::cast<std::string>(x);
    if (PyBytes_Check(x.ptr())) return bytes(x);
    if (nb::isinstance<Tensor>(x)) return tensor(nb::cast<const Tensor&>(x), place);
    if (nb::isinstance<PlacedTensor>(x)) {
      const auto& placed = nb::cast<const PlacedTensor&>(x);
      for (const auto& child : placed.node->children()) {
        static_cast<void>(tensor(child.value.as<Tensor>(), place));
      }
      return placed.node;
    }
    const auto known = containers_.find(x.ptr());
    if (known != containers_.end()) return container(known->second, place);
    if (PyDict_Check(x.ptr())) return dict(x, place);
    if (PyList_Check(x.ptr())) return list(x, place);
    if (PyTuple_Check(x.ptr())) return tuple(x, place);
    return other(x, place);
  }

 private:
  static Value container(const std::optional<Value>& known, const Place& place) {
    if (!known) refuse(place, "contains itself");
    return *known;
  }
  static Value bytes(nb::handle x) {
    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(x.ptr(), &data, &size) != 0) throw nb::python_error();
    const auto* begin = reinterpret_cast<const std::byte*>(data);
    return Bytes(begin, begin + size);
  }
  // A container is open (no Value yet) until it is read.
  Value remember(nb::handle x, Value value) {
    containers_[x.ptr()] = value;
    return value;
  }
  static void check_depth(std::size_t depth, const Place& place) {
    if (depth > kMaxTreeDepth)
      refuse(place, "is deeper than " + std::to_string(kMaxTreeDepth) + " levels");
  }

  Value dict(nb::handle x, const Place& place) {
    check_depth(open_.size(), place);
    containers_[x.ptr()] = std::nullopt;
    open_.push_back(x.ptr());
    Dict result;
    for (const auto& [k, v] : nb::borrow<nb::dict>(x)) {
      if (PyUnicode_Check(k.ptr())) {
        const auto key = nb::cast<std::string>(k);
        result.set(key, read(v, {&place, key}));
      } else if (PyLong_Check(k.ptr()) && !PyBool_Check(k.ptr())) {
        const auto key = nb::cast<std::int64_t>(k);
        result.set(key, read(v, {&place, std::to_string(key)}));
      } else {
        refuse(place, "has a key of type " + python_type(k) + "; keys are str or int");
      }
    }
    open_.pop_back();
    return remember(x, std::move(result));
  }
  std::vector<Value> elements(nb::handle x, const Place& place) {
    check_depth(open_.size(), place);
    containers_[x.ptr()] = std::nullopt;
    open_.push_back(x.ptr());
    std::vector<Value> values;
    for (nb::handle item : nb::borrow<nb::sequence>(x)) {
      values.push_back(read(item, {&place, std::to_string(values.size())}));
    }
    open_.pop_back();
    return values;
  }
  Value list(nb::handle x, const Place& place) { return remember(x, List(elements(x, place))); }
  // Each place has a tuple of its own, as write_tuple() makes them: CPython makes equal constants
  // one object, and an assignment at one place means that place alone.
  Value tuple(nb::handle x, const Place& place) {
    Tuple result(elements(x, place));
    containers_.erase(x.ptr());
    return result;
  }

  Value tensor(Tensor tensor, const Place& place) {
    const Device device = tensor.device();
    if (!device.is_cpu()) {
      const auto problem = cuda_problem();
      if (!problem.empty()) refuse(place, "is on " + to_string(device) + ": " + problem);
    }
    if (places_ != nullptr && tensor.storage().nbytes() > 0) {
      if (device.is_cpu()) {
        places_->cpu = true;
      } else {
        places_->cuda.insert(device.index);
      }
    }
    return tensor;
  }

  Value other(nb::handle x, const Place& place) {
    if (PyObject_CheckBuffer(x.ptr()) != 0) return tensor(buffer(x, place), place);
    if (!foreign_.is_none()) {
      const nb::object instead = foreign(x, place);
      if (!instead.is(Py_NotImplemented)) {
        kept_.push_back(instead);  // containers_ knows what it has by address
        return read(instead, place);
      }
    }
    if (nb::hasattr(x, "__dlpack__")) return tensor(dlpack(x, place), place);
    refuse(place, "is a " + python_type(x) +
                      ": a state has dicts, lists, tuples, None, bool, int, float, str, bytes and "
                      "arrays");
  }

  nb::object foreign(nb::handle x, const Place& place) {
    try {
      return foreign_(x);
    } catch (nb::python_error& error) {
      const nb::object type = nb::module_::import_("meshstage.errors").attr("InvalidArgument");
      if (!error.matches(type)) throw;
      refuse(place, nb::cast<std::string>(nb::str(error.value())));
    }
  }

  static Tensor buffer(nb::handle x, const Place& place) {
    Py_buffer view;
    bool writable = true;
    if (PyObject_GetBuffer(x.ptr(), &view, PyBUF_RECORDS) != 0) {
      PyErr_Clear();
      writable = false;
      if (PyObject_GetBuffer(x.ptr(), &view, PyBUF_RECORDS_RO) != 0) {
        PyErr_Clear();
        refuse(place, "is a " + python_type(x) + " whose memory has no known layout");
      }
    }
    const auto owner = keep(view);
    const auto itemsize = static_cast<std::size_t>(view.itemsize);
    const auto dtype = dtype_of_format(view.format, itemsize);
    if (!dtype || size_of(*dtype) != itemsize) {
      refuse(place, std::string("has elements of format '") +
                        (view.format == nullptr ? "" : view.format) +
                        "', which no dtype is (or in another byte order)");
    }
    Shape shape;
    Strides strides;
    std::size_t nbytes = itemsize;
    for (int d = 0; d < view.ndim; ++d) {
      const Py_ssize_t step = view.strides[d];
      shape.push_back(view.shape[d]);
      if (view.shape[d] == 0) nbytes = 0;
      if (view.shape[d] > 1 && (step < 0 || step % view.itemsize != 0)) {
        refuse(place, "has strides that are negative or no whole elements: copy it first");
      }
      strides.push_back(view.shape[d] > 1 ? step / view.itemsize : 1);
      if (nbytes > 0) nbytes += static_cast<std::size_t>((view.shape[d] - 1) * step);
    }
    if (view.ndim == 0 && view.len == 0) nbytes = 0;
    if (nbytes == 0 || element_count(shape) == 0) {
      nbytes = 0;
      strides = contiguous_strides(shape);
    }
    if (reinterpret_cast<std::uintptr_t>(view.buf) % itemsize != 0 && nbytes > 0) {
      refuse(place, "is not aligned to its elements: copy it first");
    }
    const Storage storage = Storage::wrap(nbytes == 0 ? nullptr : view.buf, nbytes, owner,
                                          {.read_only = !writable, .external = true});
    return Tensor::on_storage(storage, *dtype, std::move(shape), std::move(strides));
  }

  static Tensor dlpack(nb::handle x, const Place& place) {
    nb::object capsule;
    try {
      capsule = x.attr("__dlpack__")(nb::arg("max_version") = nb::make_tuple(1, 1));
    } catch (nb::python_error& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      capsule = x.attr("__dlpack__")();  // a library that knows no versions
    }
    try {
      return take(capsule);
    } catch (const InvalidArgument& error) {
      refuse(place, std::string("is a ") + python_type(x) + ": " + error.what());
    }
  }
  static Tensor take(const nb::object& capsule) {
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
      auto* managed = static_cast<dlpack::ManagedTensorVersioned*>(
          PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
      PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
      return from_dlpack(managed);
    }
    auto* managed =
        static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (managed == nullptr) throw nb::python_error();
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    return from_dlpack(managed);
  }

  nb::handle foreign_;
  TensorPlaces* places_;
  std::map<PyObject*, std::optional<Value>> containers_;  // nothing: open
  std::vector<PyObject*> open_;
  std::vector<nb::object> kept_;
};

nb::object scalar(const Value& value) {
  switch (value.kind()) {
    case ValueKind::kNull:
      return nb::none();
    case ValueKind::kBool:
      return nb::bool_(value.as<bool>());
    case ValueKind::kInt:
      return nb::int_(value.as<std::int64_t>());
    case ValueKind::kDouble:
      return nb::float_(value.as<double>());
    case ValueKind::kString: {
      const auto& text = value.as<std::string>();
      return nb::str(text.data(), text.size());
    }
    default: {
      const auto& data = value.as<Bytes>();
      return nb::bytes(data.data(), data.size());
    }
  }
}

bool unchanged(nb::handle now, nb::handle before) {
  if (!now.type().is(before.type())) return false;
  if (PyFloat_Check(now.ptr())) {  // bit for bit: NaN, -0.0
    const double a = PyFloat_AsDouble(now.ptr());
    const double b = PyFloat_AsDouble(before.ptr());
    return std::memcmp(&a, &b, sizeof a) == 0;
  }
  return now.equal(before);
}

nb::object write_dict(nb::handle x, const Dict& values) {
  const auto dict = nb::borrow<nb::dict>(x);
  const nb::list keys = dict.keys();  // entries are replaced meanwhile
  for (nb::handle key : keys) {
    const Value* value = values.find(PyUnicode_Check(key.ptr()) ? Key(nb::cast<std::string>(key))
                                                                : Key(nb::cast<std::int64_t>(key)));
    const nb::object before = dict[key];
    const nb::object now = write_tree(before, *value);
    if (!now.is(before)) x[key] = now;
  }
  return nb::borrow(x);
}

nb::object write_tuple(nb::handle x, const Tuple& values) {
  nb::list items;
  bool same = true;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const nb::object before = x[i];
    const nb::object now = write_tree(before, values[i]);
    same = same && now.is(before);
    items.append(now);
  }
  if (same) return nb::borrow(x);
  if (nb::hasattr(x, "_fields")) return x.type().attr("_make")(items);  // a named tuple
  return nb::tuple(items);
}

}  // namespace

Value read_tree(nb::handle object, nb::handle foreign, TensorPlaces* places) {
  return Reader(foreign, places).read(object, {nullptr, ""});
}

nb::object write_tree(nb::handle object, const Value& value) {
  if (value.is_scalar()) {
    nb::object now = scalar(value);
    return unchanged(now, object) ? nb::borrow(object) : now;
  }
  if (const auto* dict = value.get_if<Dict>(); dict != nullptr && PyDict_Check(object.ptr())) {
    return write_dict(object, *dict);
  }
  if (const auto* list = value.get_if<List>(); list != nullptr && PyList_Check(object.ptr())) {
    for (std::size_t i = 0; i < list->size(); ++i) {
      const nb::object before = object[i];
      const nb::object now = write_tree(before, (*list)[i]);
      if (!now.is(before)) object[i] = now;
    }
  }
  if (const auto* tuple = value.get_if<Tuple>(); tuple != nullptr && PyTuple_Check(object.ptr())) {
    return write_tuple(object, *tuple);
  }
  return nb::borrow(object);  // an array, or what foreign() has put a view in place of
}

}  // namespace meshstage::python
