"""How C++ reads torch's tensors, of which it knows nothing."""

import torch

from meshstage import _meshstage
from meshstage.torch._dtypes import DTYPES

PLAIN_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})

LIBRARY = _meshstage.TensorLibrary(
    storage=torch.Tensor.untyped_storage,
    address=torch.UntypedStorage.data_ptr,
    nbytes=torch.UntypedStorage.nbytes,
    conjugate=torch.Tensor.is_conj,
    negative=torch.Tensor.is_neg,
    alias=torch.Tensor.detach,
    dtypes=DTYPES,
    exchange=getattr(torch.Tensor, "__dlpack_c_exchange_api__", None),
)
