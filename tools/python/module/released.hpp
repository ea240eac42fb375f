#pragma once
#include <nanobind/nanobind.h>

#include <memory>

namespace meshstage::python {

/// Python objects that C++ keeps for the sake of their memory. No thread of C++ may call Python, so
/// whoever lets go of one only puts it on a list; the next call from Python gives them back.

/// Keeps `object` until the last copy of the pointer is gone and release_all() has run.
[[nodiscard]] std::shared_ptr<const void> keep(nanobind::handle object);
/// As keep(), for a buffer that PyObject_GetBuffer filled; it is released then.
[[nodiscard]] std::shared_ptr<const void> keep(const Py_buffer& buffer);
/// Gives back what nobody keeps any more. Needs the GIL.
void release_all() noexcept;

}  // namespace meshstage::python
