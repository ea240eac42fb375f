// _meshstage: the part of the Python package that is C++. It links meshstage and nothing of torch,
// numpy or any other library of Python's.
#include <nanobind/nanobind.h>

#include "checkpointer.hpp"
#include "cuda.hpp"
#include "digest.hpp"
#include "dtensor.hpp"
#include "errors.hpp"
#include "foreign_tensors.hpp"
#include "sharded.hpp"
#include "stager.hpp"
#include "structure.hpp"
#include "tensor_library.hpp"

NB_MODULE(_meshstage, module) {
  using namespace meshstage::python;
  bind_errors(module);
  bind_cuda(module);
  bind_digest(module);
  bind_stager(module);
  bind_tensor_library(module);
  bind_structure(module);
  bind_foreign_tensors(module);
  bind_dtensor(module);
  bind_sharded(module);
  bind_checkpointer(module);
}
