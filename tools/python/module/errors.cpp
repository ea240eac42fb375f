#include "errors.hpp"

#include <string>

#include <meshstage/core/error/error.hpp>

namespace nb = nanobind;

namespace meshstage::python {
namespace {

void raise(const Error& error) {
  const std::string kind(to_string(error.kind()));
  const nb::object classes = nb::module_::import_("meshstage.errors").attr("BY_KIND");
  const nb::object type = classes[kind.c_str()];
  const nb::object made = type(error.what());
  made.attr("rank") = error.rank() ? nb::object(nb::int_(*error.rank())) : nb::none();
  made.attr("step") = error.step() ? nb::object(nb::int_(*error.step())) : nb::none();
  made.attr("path") = nb::str(error.path().c_str());
  PyErr_SetObject(type.ptr(), made.ptr());
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const Error& error) {
      raise(error);
    }
  });
}

}  // namespace meshstage::python
